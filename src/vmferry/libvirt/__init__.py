"""libvirt: its domains as our guests and back, and the one narrow door to its daemons.

`tree` reads XML safely and remembers what was read; a module for each concern (`identity`, `memory`, `processors`,
`boot`, `platform`, `disks`, `nics`, `consoles`, `tpm`) carries over what a guest file can say, both ways; `rules/` says
what becomes of the rest; `domain` joins them. `reference` writes the tables of docs/libvirt.md. `adapter` is the door
to the daemons, `checks/` says what keeps a domain from moving, `moves/` what libvirt is asked for and what it answers.
"""

from __future__ import annotations

from vmferry.libvirt.domain import Exported, Imported, read_domain, write_domain
from vmferry.libvirt.findings import DomainRefused

__all__ = ["DomainRefused", "Exported", "Imported", "read_domain", "write_domain"]

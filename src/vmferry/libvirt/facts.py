"""What libvirt says of domains and their jobs, as values.

Source: https://libvirt.org/html/libvirt-libvirt-domain.html.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmferry.core.ids import GuestUuid


class DomainState(enum.StrEnum):
    """What a domain does, in libvirt's order (virDomainState)."""

    UNKNOWN = "unknown"
    RUNNING = "running"
    BLOCKED = "blocked"  #: on a resource; QEMU's domains never are
    PAUSED = "paused"
    SHUTDOWN = "shutdown"  #: powering off
    SHUTOFF = "shutoff"  #: defined, and without a process
    CRASHED = "crashed"  #: and its process is kept (on_crash preserve); without one it is `SHUTOFF`
    SUSPENDED = "suspended"  #: asleep by its own wish


class XmlKind(enum.Enum):
    """Which of a domain's XML: its flags (virDomainXMLFlags).

    Passwords are asked for only where the other daemon gets the XML; it is shown to nobody and kept nowhere.
    """

    LIVE = 0  #: as it runs; the definition of one that does not run
    INACTIVE = 2  #: as it will start next time
    MIGRATABLE = 8  #: as another host can take it; not on a read-only connection
    MOVING = 9  #: the same with passwords, for the other daemon alone
    MOVING_DEFINED = 11  #: the definition with passwords, for the other daemon alone


class JobKind(enum.StrEnum):
    """What becomes of a domain's job, in libvirt's order (virDomainJobType)."""

    NONE = "none"
    BOUNDED = "bounded"  #: runs, and its end is foreseen
    UNBOUNDED = "unbounded"  #: runs
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain of the host."""

    name: str
    uuid: GuestUuid
    state: DomainState
    is_persistent: bool  #: defined: it is there also when it does not run

    @property
    def is_active(self) -> bool:
        """Whether it has a process, or may have: only one that is off certainly has none."""
        return self.state is not DomainState.SHUTOFF

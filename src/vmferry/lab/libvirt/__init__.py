"""Real libvirt daemons on the hosts of a lab, and domains made from the same plans as our own guests."""

from vmferry.lab.libvirt.daemon import LibvirtDaemon, libvirt_missing
from vmferry.lab.libvirt.domain import domain_xml
from vmferry.lab.libvirt.emulator import write_emulator

__all__ = ["LibvirtDaemon", "domain_xml", "libvirt_missing", "write_emulator"]

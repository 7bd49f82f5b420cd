"""What network cards say beyond model, MAC, bridge and forwarded ports.

Source: libvirt docs/formatdomain.rst (9.0), section Network interfaces.
"""

from __future__ import annotations

from vmferry.libvirt.rules.rule import Rule, asked, left_out, refused, silent

_SWITCH = "which of the host's networks the guest is in would change"
_BRIDGE = "give the guest a Linux bridge that has what is wanted, and name it in `<source bridge=>`"

RULES: dict[str, Rule] = {
    "devices/interface/@trustGuestRxFilters": left_out("which addresses the host learns from the guest"),
    "devices/interface/mac/@type": silent("how libvirt made the address"),
    "devices/interface/mac/@check": silent("how libvirt made the address"),
    "devices/interface/source/@portid": silent("libvirt's number of the port"),
    "devices/interface/source/@dev": left_out("which of the host's cards passt uses"),
    "devices/interface/source/@portgroup": refused(_SWITCH, _BRIDGE),
    "devices/interface/target/@dev": silent("the host's name of the tap"),
    "devices/interface/target/@managed": silent("whose the tap is"),
    "devices/interface/link[state=up]": silent("as guests have it"),
    "devices/interface/link": asked("interface"),
    "devices/interface/mtu": asked("interface"),
    "devices/interface/driver[name=qemu]/@name": silent("as guests have it"),
    "devices/interface/driver/@name": left_out(
        "only of a virtio card on a bridge is it carried over: its back-end is QEMU itself"
    ),
    "devices/interface/driver/@txmode": left_out("how QEMU sends: its default"),
    "devices/interface/driver/@ioeventfd": left_out("how QEMU sends: its default"),
    "devices/interface/driver/@event_idx": asked("interface"),
    "devices/interface/driver/@queues": asked("interface"),
    "devices/interface/driver/@rx_queue_size": asked("interface"),
    "devices/interface/driver/@tx_queue_size": asked("interface"),
    "devices/interface/driver/@rss": asked("interface"),
    "devices/interface/driver/@rss_hash_report": asked("interface"),
    "devices/interface/driver/@iommu": asked("interface"),
    "devices/interface/driver/@ats": asked("interface"),
    "devices/interface/driver/@packed": asked("interface"),
    "devices/interface/driver/@page_per_vq": asked("interface"),
    "devices/interface/driver/host": asked("interface"),
    "devices/interface/driver/guest": asked("interface"),
    "devices/interface/bandwidth": left_out("limits of the card: set them on the host's bridge"),
    "devices/interface/tune": left_out("how much the tap may queue"),
    "devices/interface/coalesce": left_out("how often the tap wakes the guest"),
    "devices/interface/backend/@type": left_out("QEMU's own stack takes passt's place"),
    "devices/interface/backend/@logFile": left_out("passt's log"),
    "devices/interface/backend/@tap": left_out("a device of the host by which it is served"),
    "devices/interface/backend/@vhost": left_out("a device of the host by which it is served"),
    "devices/interface/filterref": refused(
        "a filter that keeps the guest from sending under other addresses: nothing here takes its place",
        "filter on the host's bridge (nftables), then take it out of the XML",
    ),
    "devices/interface/port": refused("ports that must not see each other", _BRIDGE),
    "devices/interface/vlan": refused(_SWITCH, _BRIDGE),
    "devices/interface/virtualport": refused(_SWITCH + " (Open vSwitch or another switch than Linux bridges)", _BRIDGE),
    "devices/interface/teaming": refused(
        "one half of a failover pair: not yet in this version", "detach the pair's VF"
    ),
    "devices/interface/rom[enabled=no]": silent("as guests have it"),
    "devices/interface/rom": asked("boot"),
    "devices/interface/ip": asked("interface"),
    "devices/interface/route": asked("interface"),
    "devices/interface/guest": left_out("a name inside a container"),
    "devices/interface/script": refused(_SWITCH, _BRIDGE),
    "devices/interface/downscript": refused(_SWITCH, _BRIDGE),
}

"""Everything of a domain outside <devices>.

Source: libvirt docs/formatdomain.rst (9.0).
"""

from __future__ import annotations

from vmferry.libvirt.findings import STAY
from vmferry.libvirt.rules.rule import Rule, asked, left_out, refused, silent

_TUNING = "the host's own limits and pinning: set them for the agent's guests by the host's means"
_LIFE = (
    "the agent decides: a guest that powers off is stopped, one that reboots goes on, one that panics stands still"
    " until somebody looks"
)

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_PAST_LIBVIRT = "what libvirt is told to tell QEMU past its own words: a guest's hardware is all in its file"

RULES: dict[str, Rule] = {
    **{
        f"{_QEMU}}}{tag}": refused(_PAST_LIBVIRT, "take it out of the XML if the guest can do without it")
        for tag in ("commandline", "override", "capabilities")
    },
    f"{_QEMU}}}deprecation": left_out("what libvirt does about old words"),
    "@id": left_out("the domain runs: shut it down before its guest is started here"),
    "title": left_out("a guest file has comments for it"),
    "description": left_out("a guest file has comments for it"),
    "metadata": left_out("what other programs keep with the domain"),
    "genid": asked("genid"),
    # memory
    "memory/@dumpCore": left_out("guests' memory is never in core dumps"),
    "maxMemory": asked("maxMemory"),
    "memoryBacking": left_out("where the host takes memory from (huge pages, locked, shared): guests get its pages"),
    "memtune": left_out(_TUNING),
    "numatune": left_out(_TUNING),
    # processors
    "vcpu/@placement": silent("how libvirt pins"),
    "vcpu/@cpuset": left_out(_TUNING),
    "cputune": left_out(_TUNING),
    "iothreads": left_out("the host's threads for disks"),
    "iothreadids": left_out("the host's threads for disks"),
    "defaultiothread": left_out("the host's threads for disks"),
    "cpu/@check": silent(
        "libvirt's own check at the start; ours is strict: every feature, or the guest does not start"
    ),
    "cpu/@migratable": silent("a named model always is"),
    "cpu/vendor": silent("which hosts libvirt takes; `vmferry check` asks for every feature"),
    "cpu/model/@fallback": silent("a named model is never replaced"),
    "cpu/model/@vendor_id": asked("cpu"),
    "cpu/cache[mode=disable]": asked("cpu"),
    "cpu/cache": asked("cpu"),
    "cpu/maxphysaddr": asked("cpu"),
    "cpu/numa": asked("numa"),
    # boot
    "os/smbios[mode=emulate]": silent("as guests have it"),
    "os/smbios": asked("sysinfo"),
    "os/bios": left_out("output of the firmware on the serial port, and what it does when nothing boots"),
    "os/bootmenu[enable=no]": silent("guests have none"),
    "os/bootmenu": left_out("the firmware's boot menu"),
    "os/firmware": left_out("by what libvirt chose the firmware; its file is taken over"),
    "os/acpi": refused("a table of the host's firmware for the guest", "install the guest anew without it"),
    "os/nvram/@template": left_out("what the guest's UEFI variables were made from; its own file is taken over"),
    "sysinfo": asked("sysinfo"),
    "sysinfo[type=fwcfg]": refused("files that the guest reads from its firmware", "give them to the guest on a disk"),
    "launchSecurity": refused("memory that is encrypted against its host: nothing here keeps that promise", STAY),
    "resource": left_out(_TUNING),
    "blkiotune": left_out(_TUNING),
    "perf": left_out("what the host counts about the guest"),
    "seclabel": left_out("how libvirt confines QEMU: an agent runs each guest under its own uid, in a sandbox"),
    "on_poweroff": left_out(_LIFE),
    "on_reboot": left_out(_LIFE),
    "on_crash": left_out(_LIFE),
    "on_lockfailure": left_out(_LIFE),
    # features of the machine
    "features/apic": silent("every machine has it"),
    "features/apic[eoi=on]": asked("features"),
    "features/apic[eoi=off]": asked("features"),
    "features/pae": silent("every CPU has it"),
    "features/hap": silent("a matter of Xen's"),
    "features/hyperv": asked("features"),
    "features/kvm": asked("features"),
    "features/pvspinlock": asked("features"),
    "features/vmcoreinfo": asked("features"),
    "features/pmu[state=off]": silent("a named CPU has none"),
    "features/pmu": asked("features"),
    "features/ioapic[driver=kvm]": silent("as guests have it"),
    "features/ioapic": asked("features"),
    "features/vmport[state=on]": silent("as guests have it"),
    "features/vmport": asked("features"),
    "features/ps2[state=on]": silent("as guests have it"),
    "features/ps2": asked("features"),
    "features/smm/tseg": asked("features"),
    "features/msrs": left_out("what KVM does on an unknown register: KVM's default"),
    "features/tcg": left_out("the size of TCG's own cache"),
    "pm/suspend-to-mem[enabled=yes]": silent("as guests have it"),
    "pm/suspend-to-mem": asked("pm"),
    "pm/suspend-to-disk[enabled=yes]": silent("as guests have it"),
    "pm/suspend-to-disk": asked("pm"),
}

"""A domain's XML becomes the guest that it is; what the guest would lose is told, and refused where it matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.core.errors import BadInput
from vmferry.core.guest import (
    Acceleration,
    Backing,
    BiosBoot,
    Disk,
    DiskFormat,
    GuestSpec,
    IoPath,
    KernelBoot,
    NetworkKind,
    Nic,
    UefiBoot,
)
from vmferry.core.ids import GuestName, GuestUuid
from vmferry.core.units import GIB, MIB, Bytes
from vmferry.libvirt import DomainRefused, read_domain
from vmferry.libvirt.findings import ACCEPTABLE, Effect, Finding

DOMAINS = Path(__file__).parent / "domains"
EVERYTHING = frozenset(ACCEPTABLE)
#: a domain of which a guest file says everything; {device} and {domain} are places for more
BASE = """<domain type='kvm'>
<name>web-7</name><memory unit='MiB'>512</memory>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/k</kernel></os>
<features><acpi/></features>
{domain}
<devices>
<serial type='pty'/>
{device}
</devices>
</domain>"""
DISK = "<disk type='file'><source file='/a'/><target dev='vda' bus='virtio'/>{}</disk>"
NIC = "<interface type='bridge'><source bridge='br0'/><model type='virtio'/>{}</interface>"


def read(name: str, accept: frozenset[str] = frozenset()) -> GuestSpec:
    """Return the guest of one of our domains."""
    return read_domain((DOMAINS / name).read_bytes(), source=name, accept=accept).spec


def stops(text: str, **options: frozenset[str] | str) -> list[Finding]:
    """Return what keeps a domain from becoming a guest file."""
    with pytest.raises(DomainRefused) as caught:
        read_domain(text, source="web-7.xml", **options)  # type: ignore[arg-type]
    return list(caught.value.findings)


def test_a_running_domain_becomes_a_guest() -> None:
    """What virt-install made and libvirt completed is read, once its owner accepts what the guest loses."""
    assert read("running.xml", EVERYTHING) == GuestSpec(
        name=GuestName("web-7"),
        memory_bytes=Bytes(2 * GIB),
        boot=BiosBoot(),
        vcpus=2,
        cpu="EPYC,+hypervisor,+tsc-adjust,-svm,-pclmulqdq",
        machine="pc-q35-7.2",
        acceleration=Acceleration.KVM,
        disks=(
            Disk("/srv/web-7.qcow2", backing=(Backing("/srv/base.qcow2"), Backing("/srv/bottom.img", DiskFormat.RAW))),
            Disk("/dev/vg/web-7-data", DiskFormat.RAW, IoPath.EMULATED, cache="directsync"),
        ),
        nics=(
            Nic(IoPath.VHOST, NetworkKind.BRIDGE, "virbr0", "52:54:00:ab:cd:ef"),
            Nic(IoPath.EMULATED, NetworkKind.BRIDGE, "br0", "52:54:00:00:00:02"),
        ),
        tpm="2.0",
        uuid=GuestUuid("6f1c1a1e-0000-4000-8000-000000000007"),
    )


def test_a_uefi_domain_becomes_a_guest_without_a_question() -> None:
    """Firmware, boot order, CD-ROM, forwarded ports and our own channels are all words of a guest file."""
    assert read("uefi.xml") == GuestSpec(
        name=GuestName("db-1"),
        memory_bytes=Bytes(4 * GIB),
        boot=UefiBoot("/usr/share/OVMF/OVMF_CODE_4M.fd", "/srv/db-1_VARS.fd"),
        vcpus=4,
        cpu="Nehalem",
        machine="pc-q35-10.0",
        acceleration=Acceleration.KVM,
        disks=(
            Disk("/srv/db-1.img", DiskFormat.RAW, cache="directsync"),
            Disk("/srv/install.iso", DiskFormat.RAW, IoPath.EMULATED, read_only=True),
            Disk("/srv/db-1-old.qcow2", read_only=True),
        ),
        nics=(Nic(mac="52:54:00:00:00:11", forward_udp=((15007, 7007), (15008, 15008))),),
        beat=True,
        control=True,
        throttle=True,
        uuid=GuestUuid("6f1c1a1e-0000-4000-8000-000000000011"),
    )


def test_a_kernel_of_the_host_and_its_command_line_are_kept() -> None:
    """Escaped characters of the command line arrive as they are meant; what is not said is libvirt's default."""
    assert read("kernel.xml") == GuestSpec(
        name=GuestName("test-1"),
        memory_bytes=Bytes(256 * MIB),
        boot=KernelBoot("/srv/vmlinuz", "/srv/initrd.img", 'console=ttyS0 quiet root=/dev/vda&x="1"'),
        acceleration=Acceleration.TCG,
    )


def test_everything_that_is_in_the_way_is_told_at_once_with_its_line() -> None:
    """All reasons are in one error, by their lines, with one option that accepts all that can be accepted."""
    text = (DOMAINS / "running.xml").read_text().replace("pc-q35-7.2", "pc-i440fx-7.2")
    with pytest.raises(DomainRefused) as caught:
        read_domain(text, source="web-7.xml")
    error = caught.value
    assert [finding.line for finding in error.findings] == sorted(finding.line for finding in error.findings)
    assert [finding.where for finding in error.findings if finding.effect is Effect.REFUSED] == ["/domain/os/type"]
    asked = sorted({finding.accept for finding in error.findings if finding.accept})
    assert f"--accept {','.join(asked)}; docs/libvirt.md" in str(error)
    assert "  web-7.xml:25: /domain/os/type: machine='pc-i440fx-7.2': a guest's frozen hardware is a q35 one" in str(
        error
    )
    rows = error.problem()["problems"]
    assert isinstance(rows, list)
    assert len(rows) == len(error.findings)
    done = read_domain(text.replace("i440fx", "q35"), accept=frozenset(asked))
    assert {finding.effect for finding in done.told} == {Effect.LEFT_OUT}


def test_the_same_thing_in_several_places_is_told_once() -> None:
    """Twelve addresses are one line, which says where the last one is."""
    address = "<address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
    device = "\n".join([DISK.format(address), NIC.format(address), NIC.format(address)])
    (found,) = stops(BASE.format(domain="", device=device))
    assert (found.line, found.accept) == (8, "address")
    assert found.where == "/domain/devices/disk/address"
    assert found.seen.endswith(" and 2 more, the last in line 10")


#: what stands in <devices> -> (effect, name to accept it by or "", where, word of what is said)
DEVICES = {
    "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='6'/></source></hostdev>": (
        Effect.REFUSED,
        "",
        "hostdev",
        "for itself",
    ),
    "<filesystem type='mount'><source dir='/x'/><target dir='x'/></filesystem>": (Effect.REFUSED, "", "filesystem", ""),
    "<memory model='dimm'><target><size>1</size></target></memory>": (Effect.REFUSED, "", "memory", "plugged in"),
    "<shmem name='x'/>": (Effect.REFUSED, "", "shmem", ""),
    "<lease><key>x</key></lease>": (Effect.REFUSED, "", "lease", "keep each other off"),
    "<quantum/>": (Effect.REFUSED, "", "quantum", "does not know it"),
    "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>": (Effect.REFUSED, "", "tpm", "tpm-tis"),
    "<tpm model='tpm-tis'><backend type='passthrough'/></tpm>": (Effect.REFUSED, "", "tpm", "emulator"),
    "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>": (Effect.ASKED, "tpm", "tpm", "disk keys"),
    "<graphics type='vnc'/>": (Effect.ASKED, "graphics", "graphics", "screen"),
    "<video><model type='qxl'/></video>": (Effect.ASKED, "video", "video", "graphics card"),
    "<sound model='ich9'/>": (Effect.ASKED, "sound", "sound", ""),
    "<input type='tablet' bus='usb'/>": (Effect.ASKED, "input", "input", ""),
    "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>": (Effect.ASKED, "rng", "rng", ""),
    "<memballoon model='virtio'/>": (Effect.ASKED, "memballoon", "memballoon", ""),
    "<watchdog model='i6300esb'/>": (Effect.ASKED, "watchdog", "watchdog", ""),
    "<panic model='hyperv'/>": (Effect.ASKED, "features", "panic", ""),
    "<vsock model='virtio'><cid auto='yes'/></vsock>": (Effect.ASKED, "vsock", "vsock", ""),
    "<iommu model='intel'/>": (Effect.ASKED, "iommu", "iommu", ""),
    "<controller type='usb' model='qemu-xhci'/>": (Effect.ASKED, "usb", "controller", ""),
    "<controller type='scsi' model='virtio-scsi'/>": (Effect.ASKED, "controller", "controller", ""),
    "<controller type='pci' index='1' model='pcie-root-port'/>": (Effect.ASKED, "address", "controller", ""),
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>": (
        Effect.ASKED,
        "channel",
        "channel",
        "",
    ),
    "<serial type='pty'><target type='isa-serial' port='1'/></serial>": (Effect.ASKED, "serial", "serial[2]", ""),
    "<console type='pty'><target type='virtio'/></console>": (Effect.ASKED, "console", "console", ""),
    "<parallel type='pty'/>": (Effect.ASKED, "parallel", "parallel", ""),
    # disks
    "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>": (Effect.ASKED, "cdrom", "disk", ""),
    DISK.format("<serial>7</serial>"): (Effect.ASKED, "disk", "disk/serial", ""),
    DISK.format("<shareable/>"): (Effect.REFUSED, "", "disk/shareable", "several guests"),
    DISK.format("<transient/>"): (Effect.REFUSED, "", "disk/transient", "thrown away"),
    DISK.format("<mirror type='file' job='copy'/>"): (Effect.REFUSED, "", "disk/mirror", "right now"),
    DISK.format("<blockio logical_block_size='4096'/>"): (Effect.REFUSED, "", "disk/blockio", "partitions"),
    DISK.format("<encryption format='luks'/>"): (Effect.REFUSED, "", "disk/encryption", "key"),
    DISK.format("<driver name='qemu' type='vmdk'/>"): (Effect.REFUSED, "", "disk/driver", "raw and qcow2"),
    DISK.format("<driver name='qemu' type='raw' queues='4'/>"): (Effect.ASKED, "disk", "disk/driver/@queues", "queues"),
    DISK.format("<backingStore type='network'><format type='raw'/><source/></backingStore>"): (
        Effect.REFUSED,
        "",
        "disk/backingStore",
        "flatten",
    ),
    DISK.replace("/a", "a").format(""): (Effect.REFUSED, "", "disk/source", "absolute path"),
    DISK.replace("virtio", "scsi").format(""): (Effect.REFUSED, "", "disk/target", "virtio and SATA"),
    DISK.replace("virtio", "sata").format("<readonly/>"): (Effect.REFUSED, "", "disk", "CD-ROM only"),
    DISK.replace("'file'>", "'file' device='lun'>").format(""): (Effect.REFUSED, "", "disk", "CD-ROM drives"),
    DISK.replace("'file'>", "'file' device='floppy'>").format(""): (Effect.REFUSED, "", "disk", "CD-ROM drives"),
    DISK.replace("'file'>", "'file' model='virtio-transitional'>").format(""): (Effect.REFUSED, "", "disk", "model"),
    "<disk type='network'><source protocol='rbd' name='p/i'/></disk>": (Effect.REFUSED, "", "disk", "over the network"),
    "<disk type='vhostuser'><source type='unix' path='/s'/></disk>": (Effect.REFUSED, "", "disk", "vhost-user"),
    "<disk type='volume'><source pool='p' volume='v'/></disk>": (Effect.REFUSED, "", "disk", "storage pool"),
    "<disk type='file'><target dev='vda' bus='virtio'/></disk>": (Effect.REFUSED, "", "disk", "without an image"),
    # network cards
    NIC.format("<mtu size='9000'/>"): (Effect.ASKED, "interface", "interface/mtu", "MTU"),
    NIC.format("<link state='down'/>"): (Effect.ASKED, "interface", "interface/link", "link state"),
    NIC.format("<driver queues='4'/>"): (Effect.ASKED, "interface", "interface/driver/@queues", "queues"),
    NIC.format("<vlan><tag id='7'/></vlan>"): (Effect.REFUSED, "", "interface/vlan", "would change"),
    NIC.format("<virtualport type='openvswitch'/>"): (Effect.REFUSED, "", "interface/virtualport", "Open vSwitch"),
    NIC.format("<filterref filter='clean-traffic'/>"): (Effect.REFUSED, "", "interface/filterref", "other addresses"),
    NIC.format("<port isolated='yes'/>"): (Effect.REFUSED, "", "interface/port", "see each other"),
    NIC.format("<teaming type='persistent'/>"): (Effect.REFUSED, "", "interface/teaming", "failover pair"),
    NIC.format("<mac address='01:00:5e:00:00:01'/>"): (Effect.REFUSED, "", "interface/mac", "unicast"),
    NIC.replace("br0", "a/b").format(""): (Effect.REFUSED, "", "interface/source", "bridge"),
    NIC.replace("<model type='virtio'/>", "").format(""): (Effect.REFUSED, "", "interface", "rtl8139"),
    NIC.replace("virtio", "e1000e").format(""): (Effect.REFUSED, "", "interface/model", "virtio and e1000"),
    "<interface type='hostdev'><source/></interface>": (Effect.REFUSED, "", "interface", "for itself"),
    "<interface type='vhostuser'><source type='unix' path='/s'/></interface>": (Effect.REFUSED, "", "interface", ""),
    "<interface type='direct'><source dev='eth0'/></interface>": (Effect.REFUSED, "", "interface", "macvtap"),
    "<interface type='network'><source network='lan'/><model type='virtio'/></interface>": (
        Effect.REFUSED,
        "",
        "interface/source",
        "running domain",
    ),
    "<interface type='user'><model type='virtio'/><portForward proto='tcp'><range start='80'/></portForward>"
    "</interface>": (Effect.REFUSED, "", "interface/portForward", "UDP"),
    "<interface type='user'><model type='virtio'/><portForward proto='udp' address='127.0.0.1'>"
    "<range start='80' end='90'/></portForward></interface>": (Effect.REFUSED, "", "interface/portForward", "single"),
}


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_a_guest_file_does_not_know_is_told(device: str) -> None:
    """It is one finding with its place; what may be accepted is accepted by its name, what is refused by nothing."""
    effect, accept, where, word = DEVICES[device]
    text = BASE.format(domain="", device=device)
    (found,) = stops(text)
    assert (found.effect, found.accept, found.line) == (effect, accept, 8)
    assert found.where == f"/domain/devices/{where}"
    assert word in f"{found.seen} {found.what} {found.fix}"
    assert found.fix
    if accept:
        (told,) = read_domain(text, accept=frozenset({accept})).told
        assert (told.effect, told.what) == (Effect.LEFT_OUT, found.what)
    else:
        assert len(stops(text, accept=EVERYTHING)) == 1


#: what stands beside <devices> -> as above
AROUND = {
    "<cpu mode='host-passthrough'/>": (Effect.REFUSED, "", "cpu", "no other host"),
    "<cpu mode='host-model'/>": (Effect.REFUSED, "", "cpu", "chosen anew"),
    "<cpu mode='maximum'/>": (Effect.REFUSED, "", "cpu", "elsewhere"),
    "<cpu match='minimum'><model>EPYC</model></cpu>": (Effect.REFUSED, "", "cpu", "beyond the model"),
    "<cpu><model>EPYC</model><feature policy='optional' name='avx'/></cpu>": (Effect.REFUSED, "", "cpu/feature", "avx"),
    "<cpu><model>EPYC</model><feature name='lahf_lm'/><feature policy='disable' name='lahf-lm'/></cpu>": (
        Effect.REFUSED,
        "",
        "cpu/feature[2]",
        "twice",
    ),
    "<cpu><model>EPYC,+avx</model></cpu>": (Effect.REFUSED, "", "cpu/model", "no name"),
    "<cpu><model vendor_id='GenuineIntel'>EPYC</model></cpu>": (Effect.ASKED, "cpu", "cpu/model/@vendor_id", ""),
    "<cpu><model>EPYC</model><numa><cell id='0' cpus='0' memory='512'/></numa></cpu>": (
        Effect.ASKED,
        "numa",
        "cpu/numa",
        "",
    ),
    "<cpu><topology sockets='2' cores='1' threads='1'/></cpu>": (Effect.ASKED, "topology", "cpu/topology", "2 sockets"),
    "<vcpu>4</vcpu>": (Effect.ASKED, "topology", "", "no topology: 4 sockets"),
    "<vcpu>0</vcpu>": (Effect.REFUSED, "", "vcpu", "1 to 255"),
    "<vcpu>256</vcpu><cpu><topology sockets='1' cores='1' threads='1'/></cpu>": (
        Effect.REFUSED,
        "",
        "vcpu",
        "1 to 255",
    ),
    "<vcpu current='1'>2</vcpu><cpu><topology sockets='1' cores='2' threads='1'/></cpu>": (
        Effect.REFUSED,
        "",
        "vcpu",
        "plugged in later",
    ),
    "<maxMemory slots='4'>4194304</maxMemory>": (Effect.ASKED, "maxMemory", "maxMemory", ""),
    "<genid/>": (Effect.ASKED, "genid", "genid", ""),
    "<sysinfo type='smbios'><bios><entry name='vendor'>x</entry></bios></sysinfo>": (
        Effect.ASKED,
        "sysinfo",
        "sysinfo",
        "",
    ),
    "<sysinfo type='fwcfg'><entry name='opt/x'>y</entry></sysinfo>": (Effect.REFUSED, "", "sysinfo", "disk"),
    "<launchSecurity type='sev'/>": (Effect.REFUSED, "", "launchSecurity", "encrypted"),
    "<clock offset='localtime'/>": (Effect.ASKED, "clock", "clock", "localtime"),
    "<clock offset='variable' adjustment='3600' basis='utc'/>": (Effect.ASKED, "clock", "clock", "3600"),
    "<clock offset='utc'><timer name='hpet' present='no'/></clock>": (Effect.ASKED, "timer", "clock/timer", "hpet"),
    "<clock offset='utc'><timer name='rtc'><catchup limit='3'/></timer></clock>": (
        Effect.ASKED,
        "timer",
        "clock/timer",
        "rtc",
    ),
    "<features><apic eoi='on'/></features>": (Effect.ASKED, "features", "features[2]/apic", "eoi"),
    "<pm><suspend-to-mem enabled='no'/></pm>": (Effect.ASKED, "pm", "pm/suspend-to-mem", ""),
    "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-x'/></commandline>": (
        Effect.REFUSED,
        "",
        "http://libvirt.org/schemas/domain/qemu/1.0}commandline",
        "past its own words",
    ),
    "<os><kernel>/other</kernel></os>": (Effect.REFUSED, "", "os[2]/kernel", "does not know it"),
}


@pytest.mark.parametrize("text", AROUND)
def test_what_stands_around_the_devices_is_told_too(text: str) -> None:
    """CPU, clock, memory and the rest follow the same rules as devices."""
    effect, accept, where, word = AROUND[text]
    (found,) = stops(BASE.format(domain=text, device=""))
    assert (found.effect, found.accept) == (effect, accept)
    assert found.where == f"/domain/{where}".rstrip("/")
    assert word in f"{found.seen} {found.what} {found.fix}"
    if accept:
        read_domain(BASE.format(domain=text, device=""), accept=frozenset({accept}))


#: (what is replaced, by what, where it is refused)
CHANGES = [
    ("type='kvm'", "type='xen'", "/domain"),
    ("web-7<", "Web_7<", "/domain/name"),
    ("<name>web-7</name>", "", "/domain"),
    ("arch='x86_64'", "arch='aarch64'", "/domain/os/type"),
    ("pc-q35-7.2", "q35", "/domain/os/type"),
    (" machine='pc-q35-7.2'", "", "/domain/os/type"),
    ("pc-q35-7.2", "pc-i440fx-7.2", "/domain/os/type"),
    (">hvm<", ">exe<", "/domain/os/type"),
    ("<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/k</kernel></os>", "", "/domain"),
    ("/k<", "k<", "/domain/os/kernel"),
    ("<kernel>/k</kernel>", "", "/domain/os"),
    (
        "<kernel>/k</kernel>",
        "<initrd>/i</initrd><loader type='pflash'>/c</loader><nvram>/v</nvram>",
        "/domain/os/initrd",
    ),
    ("<kernel>/k</kernel>", "<loader type='pflash'>/c</loader>", "/domain/os/loader"),
    ("<kernel>/k</kernel>", "<loader type='rom'>/c</loader><nvram>/v</nvram>", "/domain/os/loader"),
    ("<kernel>/k</kernel>", "<loader type='pflash' secure='yes'>/c</loader><nvram>/v</nvram>", "/domain/os/loader"),
    ("<kernel>/k</kernel>", "<loader type='pflash'>/c</loader><nvram format='qcow2'>/v</nvram>", "/domain/os/nvram"),
    ("</os>", "<loader type='pflash'>/c</loader><nvram>/v</nvram></os>", "/domain/os/loader"),
    ("<memory unit='MiB'>512<", "<memory>1024<", "/domain/memory"),
    ("<memory unit='MiB'>512<", "<memory unit='parsec'>512<", "/domain/memory"),
    ("<memory unit='MiB'>512<", "<memory unit='MiB'>half<", "/domain/memory"),
    ("<name>", "<uuid>7</uuid><name>", "/domain/uuid"),
]


@pytest.mark.parametrize(("old", "new", "where"), CHANGES)
def test_what_every_guest_must_say_is_checked(old: str, new: str, where: str) -> None:
    """A wrong name, machine, firmware, memory or UUID is one refusal, with what to do."""
    base = BASE.format(domain="", device="")
    assert old in base
    (found,) = stops(base.replace(old, new, 1), accept=EVERYTHING)
    assert (found.effect, found.where) == (Effect.REFUSED, where)
    assert found.fix


def test_a_uefi_domain_whose_firmware_only_libvirt_knows_is_refused() -> None:
    """`firmware='efi'` without a file is no firmware yet."""
    text = BASE.format(domain="", device="").replace("<os>", "<os firmware='efi'>").replace("<kernel>/k</kernel>", "")
    (found,) = [f for f in stops(text) if f.effect is Effect.REFUSED]
    assert "virsh define" in found.fix


@pytest.mark.parametrize(
    ("order", "seen"),
    [
        ("<boot dev='network'/><boot dev='hd'/>", "'network', 'hd'"),
        ("<boot dev='cdrom'/>", "'cdrom'"),
        ("<boot dev='hd'/><boot dev='network'/>", "'hd', 'network'"),
    ],
)
def test_another_boot_order_is_asked_for(order: str, seen: str) -> None:
    """A guest without a kernel of its host boots from its first disk; with one the order does not matter."""
    text = BASE.format(domain="", device=DISK.format("")).replace("</os>", f"{order}</os>")
    assert read_domain(text).spec.boot == KernelBoot("/k")
    (found,) = stops(text.replace("<kernel>/k</kernel>", ""))
    assert (found.accept, found.seen) == ("boot", seen)


def test_the_order_of_single_devices_is_asked_for_unless_the_first_disk_is_first() -> None:
    """The second disk, or a network card, as the first to boot from is another guest."""
    first, second = DISK.format("<boot order='{0}'/>"), DISK.replace("/a", "/b").format("<boot order='{1}'/>")
    nic = NIC.format("<boot order='3'/>")
    text = BASE.format(domain="", device=first + second).replace("<kernel>/k</kernel>", "")
    assert read_domain(text.format("1", "2")).spec.boot == BiosBoot()
    assert [f.accept for f in stops(text.format("2", "1"))] == ["boot"]
    with_nic = text.replace("</devices>", nic + "</devices>")
    assert [(f.accept, f.seen) for f in stops(with_nic.format("1", "2"))] == [("boot", "disk[1], disk[2], interface")]


@pytest.mark.parametrize(
    ("number", "unit", "mib"),
    [
        ("524288", None, 512),
        ("512", "M", 512),
        ("512", "MiB", 512),
        ("1", "g", 1024),
        ("1", "GB", 954),  # 10^9 bytes are 953.67 MiB, and libvirt rounds up
        ("1048577", "KiB", 1025),
        ("536870912", "bytes", 512),
    ],
)
def test_memory_is_what_libvirt_gives(number: str, unit: str | None, mib: int) -> None:
    """Units are libvirt's: KB is 1000, K and KiB are 1024, none is KiB; whole MiB are rounded up to."""
    said = "" if unit is None else f" unit='{unit}'"
    text = BASE.format(domain="", device="").replace("<memory unit='MiB'>512", f"<memory{said}>{number}")
    assert read_domain(text).spec.memory_bytes == mib * MIB


@pytest.mark.parametrize(
    ("mode", "cache", "is_told"),
    [
        (None, "none", False),
        ("none", "none", False),
        ("directsync", "directsync", False),
        ("writeback", "none", True),
        ("unsafe", "none", True),
        ("writethrough", "directsync", True),
    ],
)
def test_a_cache_mode_becomes_the_direct_one_with_the_same_write_cache(
    mode: str | None, cache: str, is_told: bool
) -> None:
    """The guest sees the same write cache as before; that the host's page cache is left out is told."""
    said = "" if mode is None else f" cache='{mode}'"
    device = DISK.format(f"<driver name='qemu' type='raw'{said}/>")
    imported = read_domain(BASE.format(domain="", device=device))
    assert imported.spec.disks[0].cache == cache
    assert len(imported.told) == is_told


def test_what_stands_in_the_xml_cannot_act_on_the_terminal() -> None:
    """Line breaks and control characters of the XML are shown as such, never written as they are."""
    odd = "x&#10;web-7.xml:1: all is well&#x9b;31m"
    device = f"<input type='{odd}'/>{DISK.format(f'<serial>{odd}</serial>')}<serial><target port='{odd}'/></serial>"
    around = f"<clock offset='{odd}'><timer name='{odd}' track='{odd}'/></clock><cpu><topology sockets='{odd}'/></cpu>"
    text = BASE.format(domain=around, device=device).replace("</os>", f"<boot dev='{odd}'/></os>")
    with pytest.raises(DomainRefused) as caught:
        read_domain(text.replace("<kernel>/k</kernel>", ""), source="web-7.xml", name=None)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.findings) + 2
    assert all(line.isprintable() for line in lines)
    assert len(caught.value.findings) >= 6


def test_names_are_given_and_accepted_by_what_they_are() -> None:
    """A guest's name can be chosen; a name to accept that is none is told with those that there are."""
    text = BASE.format(domain="", device="").replace("web-7<", "Web 7<")
    assert read_domain(text, name="web-8").spec.name == "web-8"
    assert [f.where for f in stops(text, name="Web_8")] == ["/domain/name"]
    with pytest.raises(BadInput, match=r"cannot accept everything, videos: .*known are address, boot"):
        read_domain(text, accept=frozenset({"videos", "everything", "video"}))


def test_other_xml_is_no_domain() -> None:
    """The XML of a network is refused by its root, with its line."""
    with pytest.raises(BadInput, match=r"net.xml:2: <network>, expected <domain>"):
        read_domain("<!-- x -->\n<network/>", source="net.xml")

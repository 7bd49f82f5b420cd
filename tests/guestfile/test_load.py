"""A good guest file gives the guest; a bad one gives every mistake, with its line and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.core.errors import BadInput
from vmferry.core.guest import (
    Acceleration,
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
from vmferry.core.units import MIB, Bytes
from vmferry.guestfile import GuestFileInvalid, load_guest_file, parse_guest_file

SMALL = 'name = "web-7"\nmemory = "512 MiB"\n[boot]\nkernel = "/k"\n'
FUNCTION = 'path = "sriov_vf"\nphysical_network = "fabric"\n'
FULL = """\
name = "web-7"
memory = 536870912
vcpus = 2
cpu = "EPYC,-svm,avx2=off"
machine = "pc-q35-10.0"
acceleration = "tcg"
beat = true
control = true
throttle = true
tpm = "2.0"
uuid = "6F1C1A1E-0000-4000-8000-000000000007"
echo = "10.0.0.7:7007"

[boot]
firmware = "uefi"
code = "/code.fd"
nvram = "/vars.fd"

[[disk]]
image = "/srv/a.raw"
format = "raw"
io_path = "emulated"
read_only = true
cache = "directsync"

[[disk]]
image = "/srv/b.qcow2"

[[nic]]
path = "emulated"
network = "bridge"
bridge = "br0"
mac = "52:54:00:AB:CD:EF"

[[nic]]
forward_udp = [[15007, 7], [15008, 8]]
"""


def problems(text: str) -> list[tuple[int | None, str, str, str]]:
    """Return every mistake of a text as (line, key, seen, allowed)."""
    with pytest.raises(GuestFileInvalid) as caught:
        parse_guest_file(text, "web-7.toml")
    return [(p.line, p.key, p.seen, p.allowed) for p in caught.value.problems]


def test_a_small_file_gives_the_defaults() -> None:
    """Name, memory and a kernel are enough; everything else has the default of the core."""
    expected = GuestSpec(GuestName("web-7"), Bytes(512 * MIB), KernelBoot("/k"))
    assert parse_guest_file(SMALL) == expected


def test_a_full_file_gives_every_key() -> None:
    """Each key of the file arrives in the guest, MACs and UUID in lower case."""
    spec = parse_guest_file(FULL)
    assert spec == GuestSpec(
        name=GuestName("web-7"),
        memory_bytes=Bytes(512 * MIB),
        boot=UefiBoot("/code.fd", "/vars.fd"),
        vcpus=2,
        cpu="EPYC,-svm,avx2=off",
        machine="pc-q35-10.0",
        acceleration=Acceleration.TCG,
        disks=(
            Disk("/srv/a.raw", DiskFormat.RAW, IoPath.EMULATED, read_only=True, cache="directsync"),
            Disk("/srv/b.qcow2"),
        ),
        nics=(
            Nic(IoPath.EMULATED, NetworkKind.BRIDGE, bridge="br0", mac="52:54:00:ab:cd:ef"),
            Nic(forward_udp=((15007, 7), (15008, 8))),
        ),
        beat=True,
        control=True,
        throttle=True,
        tpm="2.0",
        uuid=GuestUuid("6f1c1a1e-0000-4000-8000-000000000007"),
        echo="10.0.0.7:7007",
    )


def test_bios_boots_from_the_first_disk() -> None:
    """A BIOS guest with a disk is fine."""
    spec = parse_guest_file('name="a"\nmemory="2 MiB"\nboot.firmware="bios"\n[[disk]]\nimage="/d"\n')
    assert spec.boot == BiosBoot()


#: one line put into the file -> (key, words of seen, words of allowed); the file is otherwise fine
ONE_LINE = {
    'name = "Web_7"': ("name", ["'Web_7'"], ["a-z"]),
    "name = 7": ("name", ["7 (a number)"], ["a text"]),
    'memory = "512"': ("memory", ["'512'"], ['"512 MiB"']),
    'memory = "512 MB"': ("memory", ["'512 MB'"], ['"512 MiB"']),
    'memory = "1 MiB"': ("memory", [], ["2 MiB to 16 TiB"]),
    'memory = "17 TiB"': ("memory", [], ["2 MiB to 16 TiB"]),
    "memory = 536870913": ("memory", ["536870913"], ["whole MiB"]),
    "memory = true": ("memory", ["True"], ["bytes"]),
    "vcpus = 0": ("vcpus", ["0"], ["1 to 255"]),
    "vcpus = 256": ("vcpus", ["256"], ["1 to 255"]),
    'vcpus = "2"': ("vcpus", ["'2' (a text)"], ["a whole number"]),
    "vcpus = true": ("vcpus", ["True"], ["a whole number"]),
    "vcpus = 1.5": ("vcpus", ["1.5"], ["a whole number"]),
    'cpu = "host"': ("cpu", ["'host'"], ["named model", "no other host"]),
    'cpu = "max"': ("cpu", ["'max'"], ["another CPU elsewhere"]),
    'cpu = "host,-avx"': ("cpu", ["'host,-avx'"], ["no other host"]),
    'cpu = "EPYC, -svm"': ("cpu", [], ["EPYC,-svm"]),
    'machine = "q35"': ("machine", ["'q35'"], ["alias", "pc-q35-7.2"]),
    'machine = "pc-i440fx-7.2"': ("machine", ["'pc-i440fx-7.2'"], ["PCI Express"]),
    'acceleration = "xen"': ("acceleration", ["'xen'"], ["auto, kvm, tcg"]),
    "beat = 1": ("beat", ["1 (a number)"], ["true or false"]),
    'echo = "10.0.0.7:7007"': ("echo", ["without a nic"], ["[[nic]]"]),
    'tpm = "1.2"': ("tpm", ["'1.2'"], ['"2.0"']),
    'tpm = "/var/lib/swtpm"': ("tpm", ["'/var/lib/swtpm'"], ['"2.0"', "kept by the agent"]),
    'uuid = "web-7"': ("uuid", ["'web-7'"], ["leave it out"]),
    'uuid = "00000000-0000-0000-0000-000000000000"': ("uuid", ["'0000"], ["6f1c1a1e-"]),
    "tpm = true": ("tpm", ["True"], ["a text"]),
    "memroy = 3": ("memroy", ["unknown key"], ["memory?", "vcpus"]),
}


@pytest.mark.parametrize("line", ONE_LINE)
def test_one_bad_line_gives_one_mistake_with_its_line(line: str) -> None:
    """A bad top-level line is told once, with its number, its key, what was seen and what is allowed."""
    key, seen, allowed = ONE_LINE[line]
    kept = [other for other in SMALL.splitlines() if not other.startswith(f"{key} =")]
    ((number, told_key, told_seen, told_allowed),) = problems("\n".join(["# first", line, *kept]))
    assert (number, told_key) == (2, key)
    assert [word for word in seen if word not in told_seen] == []
    assert [word for word in allowed if word not in told_allowed] == []


#: lines behind the small file -> (line, key, words of seen, words of allowed)
TABLES = {
    '[[disk]]\nimage = "a.raw"': (6, "disk[0].image", "'a.raw'", "absolute"),
    '[[disk]]\nformat = "raw"': (5, "disk[0].image", "missing", "image file"),
    '[[disk]]\nimage = "/a"\nformat = "vmdk"': (7, "disk[0].format", "'vmdk'", "raw, qcow2"),
    '[[disk]]\nimage = "/a"\nio_path = "vhost"': (7, "disk[0].io_path", "'vhost'", "emulated, virtio (not yet"),
    '[[disk]]\nimage = "/a"\nio_path = "vhost_user"': (7, "disk[0].io_path", "'vhost_user'", "not yet in this version"),
    '[[nic]]\npath = "vhost"': (
        6,
        "nic[0].path",
        'path = "vhost" with network = "user"',
        'only beside network = "bridge"',
    ),
    '[[disk]]\nimage = "/a"\nio_path = "scsi"': (7, "disk[0].io_path", "'scsi'", "emulated, virtio"),
    '[[disk]]\nimage = "/a"\nio_path = 3': (7, "disk[0].io_path", "3", "emulated, virtio"),
    '[[disk]]\nimage = "/a"\npath = "virtio"': (7, "disk[0].path", "unknown key", "io_path?"),
    '[[disk]]\nimage = "/a"\ncache = "unsafe"': (7, "disk[0].cache", "'unsafe'", "may never reach"),
    '[[disk]]\nimage = "/a"\ncache = "writeback"': (7, "disk[0].cache", "'writeback'", "page cache"),
    '[[disk]]\nimage = "/a"\ncache = "fast"': (7, "disk[0].cache", "'fast'", "none, directsync"),
    '[[disk]]\nimage = "/a"\n[[disk]]\nimage = "/a"': (8, "disk[1].image", "disk[0].image", "of its own"),
    '[[disk]]\nimage = "/k"': (6, "disk[0].image", "boot.kernel", "of its own"),
    '[[nic]]\npath = "vhost_user"': (6, "nic[0].path", "'vhost_user'", "not yet in this version"),
    '[[nic]]\npath = "passthrough"': (6, "nic[0].path", "'passthrough'", "is a [[host_device]]"),
    '[[host_device]]\ndevice = "eth0"': (6, "host_device[0].device", "'eth0'", "vendor:device"),
    "[[host_device]]\nmay_detach = true": (5, "host_device[0].device", "missing", "vendor:device"),
    '[[host_device]]\ndevice = "8086:10d3"\nmodel = "x"': (7, "host_device[0].model", "unknown key", "may_detach"),
    '[[host_device]]\ndevice = "8086:10d3"\n' * 5: (13, "host_device[4]", "5 devices of the host", "at most 4"),
    '[[nic]]\npath = "sriov_vf"\nnetwork = "none"': (5, "nic[0].physical_network", "missing", "needs it"),
    f'[[nic]]\n{FUNCTION}network = "user"': (8, "nic[0].network", "'user'", "a standby on it"),
    f'[[nic]]\n{FUNCTION}network = "none"\nbridge = "br0"': (9, "nic[0].bridge", 'network = "none"', "only beside"),
    f'[[nic]]\n{FUNCTION}network = "none"\nstandby = "vhost"': (9, "nic[0].standby", "none", "only beside"),
    f'[[nic]]\n{FUNCTION}network = "none"\nvlan = 4095': (9, "nic[0].vlan", "4095", "1 to 4094"),
    f'[[nic]]\n{FUNCTION}network = "bridge"\nbridge = "br0"\nstandby = "emulated"': (
        10,
        "nic[0].standby",
        "'emulated'",
        "virtio, vhost",
    ),
    '[[nic]]\nnetwork = "none"': (6, "nic[0].network", '"none"', "sriov_vf"),
    "[[nic]]\nvlan = 7": (6, "nic[0].vlan", 'without path = "sriov_vf"', "only beside"),
    "[[nic]]\nmay_detach = true": (6, "nic[0].may_detach", 'without path = "sriov_vf"', "only beside"),
    f'[[nic]]\n{FUNCTION}network = "bridge"\nbridge = "br0"\nmay_detach = true': (
        *(10, "nic[0].may_detach", "beside a standby", "it may, always"),
    ),
    '[[nic]]\nnetwork = "bridge"': (5, "nic[0].bridge", "missing", "needs it"),
    '[[nic]]\nbridge = "br0"': (6, "nic[0].bridge", 'network = "user"', "only beside"),
    '[[nic]]\nnetwork = "bridge"\nbridge = "a/b"': (7, "nic[0].bridge", "'a/b'", "1 to 15"),
    '[[nic]]\nnetwork = "tap"': (6, "nic[0].network", "'tap'", "user, bridge, none"),
    '[[nic]]\nmac = "01:00:00:00:00:01"': (6, "nic[0].mac", "'01:00", "unicast"),
    '[[nic]]\nmac = "52:54:00:00:00:01"\n[[nic]]\nmac = "52:54:00:00:00:01"': (8, "nic[1].mac", "nic[0].mac", "own"),
    "[[nic]]\nforward_udp = [[1, 2],\n[3, 70000]]": (7, "nic[0].forward_udp[1][1]", "70000", "1 to 65535"),
    "[[nic]]\nforward_udp = [[1]]": (6, "nic[0].forward_udp[0]", "[1]", "[host port, guest port]"),
    "[[nic]]\nforward_udp = [[1, 2], [1, 3]]": (6, "nic[0].forward_udp[1]", "1 again", "once"),
    '[[nic]]\nnetwork = "bridge"\nbridge = "b"\nforward_udp = [[1, 2]]': (8, "nic[0].forward_udp", "bridge", "user"),
}


@pytest.mark.parametrize("lines", TABLES)
def test_one_bad_device_gives_one_mistake_with_its_line(lines: str) -> None:
    """A bad line of a disk or network card is told once, with the element's index."""
    line, key, seen, allowed = TABLES[lines]
    ((told_line, told_key, told_seen, told_allowed),) = problems(SMALL + lines)
    assert (told_line, told_key) == (line, key)
    assert seen in told_seen
    assert allowed in told_allowed


#: [boot] -> keys that are told
BOOTS = {
    "": ["boot"],
    'kernel = "/k"\nfirmware = "bios"\n[[disk]]\nimage = "/d"': ["boot.firmware"],
    'firmware = "bios"': ["boot.firmware"],
    'firmware = "uefi"': ["boot.code", "boot.nvram"],
    'firmware = "coreboot"': ["boot.firmware"],
    'initrd = "/i"\nfirmware = "bios"\n[[disk]]\nimage = "/d"': ["boot.initrd"],
    'kernel = "/k"\ncode = "/c"': ["boot.code"],
    'kernel = "k"\ninitrd = "i"': ["boot.kernel", "boot.initrd"],
    'kernel = "/k"\ndisk = 1': ["boot.disk"],
}


@pytest.mark.parametrize("boot", BOOTS)
def test_forbidden_ways_to_boot_are_told(boot: str) -> None:
    """Kernel, UEFI and BIOS exclude each other, and each asks for what it needs."""
    told = problems(f'name = "a"\nmemory = "2 MiB"\n[boot]\n{boot}')
    assert [key for _, key, _, _ in told] == BOOTS[boot]


def test_all_mistakes_come_at_once() -> None:
    """Wrong types, unknown keys and forbidden combinations are told together, in the order of their lines."""
    text = 'name = "A"\nmemroy = 1\n[[nic]]\nnetwork = "bridge"\n[[disk]]\nimage = "x"\ncache = "unsafe"\n'
    keys = [key for _, key, _, _ in problems(text)]
    assert keys == ["boot", "memory", "name", "memroy", "nic[0].bridge", "disk[0].image", "disk[0].cache"]


def test_the_text_has_file_line_key_seen_and_allowed() -> None:
    """A person reads each mistake on a line of its own, as compilers print them, and then what to do."""
    with pytest.raises(GuestFileInvalid) as caught:
        parse_guest_file(SMALL + "vcpus = 0", "web-7.toml")
    text = str(caught.value)
    assert "guest file web-7.toml has 1 mistake:\n  web-7.toml:5: boot.vcpus: unknown key; allowed: firmware" in text
    assert "correct them" in text
    assert caught.value.exit_code == 2
    rows = caught.value.problem()["problems"]
    assert isinstance(rows, list)
    assert rows[0]["line"] == 5


@pytest.mark.parametrize(
    ("text", "line"),
    [("name = \n", 1), ("a = 1\na = 2\n", 2), ('a = "', 1), ("[" * 3000, 1), ("a = " + "[" * 5000, 1)],
)
def test_broken_toml_is_told_with_its_line(text: str, line: int | None) -> None:
    """A file that is not TOML gives one mistake with its line, and never a traceback."""
    ((told, key, _, allowed),) = problems(text)
    assert (told, key) == (line, "(syntax)")
    assert allowed


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that does not exist is bad input with its path."""
    with pytest.raises(BadInput, match="no-such"):
        load_guest_file(str(tmp_path / "no-such.toml"))


def test_a_binary_or_huge_file_is_refused(tmp_path: Path) -> None:
    """A disk image given by mistake is refused with the line of the first byte that is no text, or for its size."""
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b'name = "a"\n\xff\xfe')
    with pytest.raises(GuestFileInvalid) as caught:
        load_guest_file(str(binary))
    assert caught.value.problems[0].line == 2
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(BadInput, match="larger than 1 MiB"):
        load_guest_file(str(huge))


def test_every_example_is_a_guest() -> None:
    """The examples of the project are valid guest files."""
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
    assert len(examples) >= 4
    assert len({load_guest_file(str(path)).name for path in examples}) == len(examples)


def test_a_mistyped_key_of_an_image_below_is_told_with_that_tables_keys(tmp_path: Path) -> None:
    """Not with those of the disk around it."""
    file = tmp_path / "web-7.toml"
    file.write_text(
        'name = "web-7"\nmemory = "64 MiB"\n[boot]\nfirmware = "bios"\n[[disk]]\nimage = "/srv/a.qcow2"\n'
        'backing = [{ image = "/srv/b.raw", formt = "raw" }]\n'
    )
    with pytest.raises(
        BadInput, match=r"backing\[0\]\.formt: unknown key; allowed: format\? Known here: image, format\b(?!, io)"
    ):
        load_guest_file(str(file))

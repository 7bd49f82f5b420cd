"""Building: the same bytes each time, once per set of inputs, whole or not at all."""

from __future__ import annotations

import lzma
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

from vmferry.core.errors import Broken, NotFound
from vmferry.lab.guests import build, cpio, linux
from vmferry.lab.guests.cache import built_once, digest_of, files_digest, forget_old
from vmferry.lab.guests.compiler import compile_c
from vmferry.lab.guests.gpt import ESP_TYPE, LINUX_TYPE, Partition, tables
from vmferry.lab.guests.kernel import modules_in_order, uncompressed
from vmferry.lab.toolchain import cache_dir


def test_micro_built_twice_is_the_same_bytes(tmp_path: Path) -> None:
    """Two caches that know nothing of each other get the same guest."""
    first, second = build("micro", tmp_path / "one"), build("micro", tmp_path / "two")
    assert first.kernel != second.kernel
    assert first.content_hash == second.content_hash


@pytest.mark.slow
def test_linux_built_twice_is_the_same_bytes(tmp_path: Path) -> None:
    """Kernel and initramfs come out alike from the same packages."""
    build("linux", cache_dir())  # so that the packages are there
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        linux.make(folder, cache_dir())
    assert files_digest(folders[0]) == files_digest(folders[1])


def test_a_cached_guest_is_not_built_again(tmp_path: Path) -> None:
    """The second call returns the same files, untouched."""
    first = build("micro", tmp_path)
    assert first.kernel is not None
    stamp = first.kernel.stat().st_mtime_ns
    second = build("micro", tmp_path)
    assert second == first
    assert first.kernel.stat().st_mtime_ns == stamp


def test_of_two_builders_at_once_one_builds(tmp_path: Path) -> None:
    """The other waits and gets what the first one made."""
    made: list[Path] = []
    inside, go_on = threading.Event(), threading.Event()

    def make(folder: Path) -> None:
        made.append(folder)
        inside.set()
        assert go_on.wait(10)
        (folder / "file").write_text("content")

    threads = [threading.Thread(target=built_once, args=(tmp_path / "guest", make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    assert not (tmp_path / "guest").exists()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert (tmp_path / "guest" / "file").read_text() == "content"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """After an error there is no half-made guest that the next call would take for a whole one."""

    def make(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise Broken("no space")

    with pytest.raises(Broken, match="no space"):
        built_once(tmp_path / "guest", make)
    assert [path.name for path in tmp_path.iterdir()] == [".guest.lock"]


def test_old_builds_are_forgotten(tmp_path: Path) -> None:
    """The latest builds stay, and other kinds are not touched."""
    for number, name in enumerate(["micro-1", "micro-2", "micro-3", "linux-1"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, ns=(number, number))
    forget_old(tmp_path, "micro-*", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linux-1", "micro-2", "micro-3"]


def test_an_unknown_guest_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    """The error names what there is."""
    with pytest.raises(NotFound, match="linux, micro"):
        build("windows", tmp_path)  # type: ignore[arg-type]


def test_source_code_that_does_not_compile_says_so(tmp_path: Path) -> None:
    """The compiler's words are in the error."""
    (tmp_path / "bad.c").write_text("int main(void) { return nonsense; }\n")
    with pytest.raises(Broken, match="nonsense"):
        compile_c([tmp_path / "bad.c"], tmp_path / "bad", ["-O2"])


def test_inputs_are_told_apart_however_they_are_cut() -> None:
    """Parts that join to the same bytes are different inputs."""
    assert digest_of([b"ab", b"c"]) != digest_of([b"a", b"bc"])


def test_an_archive_reads_back(tmp_path: Path) -> None:
    """What the kernel's own format tool lists is what was put in, with fixed times and owners."""
    entries = [
        cpio.directory("bin"),
        cpio.regular("bin/tool", b"12345", executable=True),
        cpio.device("console", 5, 1),
    ]
    data = cpio.archive(entries)
    assert data == cpio.archive(entries)
    assert len(data) % 4 == 0
    assert data.count(b"070701") == len(entries) + 1
    header = data[data.index(b"bin/tool\0") - 110 :][:110]
    fields = [int(header[at : at + 8], 16) for at in range(6, 110, 8)]
    assert fields == [2, 0o100755, 0, 0, 1, 1_000_000_000, 5, 0, 0, 0, 0, len("bin/tool") + 1, 0]


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    """Each module follows its dependencies; dashes count as underscores; unknown names are built in."""
    (tmp_path / "virtio-pci.ko").write_bytes(b"\0depends=virtio-ring,virtio\0x\0")
    (tmp_path / "virtio.ko.xz").write_bytes(lzma.compress(b"\0depends=\0unpacked\0"))
    (tmp_path / "virtio_ring.ko").write_bytes(b"\0depends=virtio\0")
    modules = modules_in_order(tmp_path, ["virtio_pci", "ext4"])
    assert [module.name for module in modules] == ["virtio", "virtio_ring", "virtio_pci"]
    assert modules[0].data == b"\0depends=\0unpacked\0"


def _bzimage(payload: bytes) -> bytes:
    header = bytearray(1024)  # one setup sector and the boot sector
    header[0x1F1] = 1
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + b"\0" * 16 + payload


def test_the_kernel_is_taken_out_of_its_image() -> None:
    """An xz payload gives the ELF kernel inside."""
    elf = b"\x7fELF" + b"kernel" * 100
    payload = lzma.compress(elf) + struct.pack("<I", len(elf))
    assert uncompressed(_bzimage(payload)) == elf


def test_a_kernel_that_cannot_be_unpacked_stays_as_it_is() -> None:
    """An unknown compression costs time at the guest's boot, and nothing else."""
    image = _bzimage(b"unknown format")
    assert uncompressed(image) == image


def test_the_partition_tables_check_out() -> None:
    """Both copies carry right checksums and the partitions' places, and the same input gives the same bytes."""
    disk = 64 << 20
    partitions = [Partition("esp", ESP_TYPE, 1 << 20, 16 << 20), Partition("root", LINUX_TYPE, 20 << 20, 8 << 20)]
    start, end = tables(partitions, disk)
    assert (start, end) == tables(partitions, disk)
    for header, entries in ((start[512:1024], start[1024:]), (end[-512:], end[:-512])):
        blank = header[:16] + bytes(4) + header[20:92]
        assert struct.unpack_from("<8sII I", header)[:1] == (b"EFI PART",)
        assert struct.unpack_from("<I", header, 16) == (zlib.crc32(blank),)
        assert struct.unpack_from("<I", header, 88) == (zlib.crc32(entries),)
        assert struct.unpack_from("<QQ", entries, 128 + 32) == ((20 << 20) // 512, (28 << 20) // 512 - 1)
    assert start[510:512] == b"\x55\xaa"


def test_the_command_builds_and_says_where(tmp_path: Path) -> None:
    """`python -m vmferry.lab.guests build micro` prints the files and the hash."""
    command = [sys.executable, "-m", "vmferry.lab.guests", "build", "micro", "--cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    image = build("micro", tmp_path)
    assert str(image.kernel) in done.stdout
    assert image.content_hash[:16] in done.stdout

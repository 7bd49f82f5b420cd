"""A log that QEMU writes has a limit, and whoever owns its directory gains nothing by that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.qemu.conftest import Start
from tests.qemu.images import make_image

from vmferry.agent.log_keeper import LogKeeper
from vmferry.core.guest import KernelBoot
from vmferry.qemu import QemuHypervisor
from vmferry.qemu.log_limit import cut
from vmferry.testing.conformance_hypervisor import SPEC

#: mov al,'x'; mov dx,0x3f8; out dx,al; jmp back to the out: prints for ever
PRINT_FOR_EVER = b"\xb0\x78\x66\xba\xf8\x03\xee\xeb\xfd"


def test_the_newest_part_stays(tmp_path: Path) -> None:
    """What is over the limit goes, the rest is beside the log, and whoever appends goes on at the start."""
    log = tmp_path / "console.log"
    with log.open("ab") as writer:
        writer.write(b"old" * 100 + b"new" * 10)
        writer.flush()
        assert cut(tmp_path, "console.log", 30)
        assert (tmp_path / "console.log.1").read_bytes() == b"new" * 10
        writer.write(b"newest")
    assert log.read_bytes() == b"newest"
    assert not cut(tmp_path, "console.log", 30)
    assert not cut(tmp_path, "no.log", 30)
    assert not cut(tmp_path / "nowhere", "console.log", 30)


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "pipe", "directory"])
def test_only_plain_files_are_cut(tmp_path: Path, kind: str) -> None:
    """A guest's user who puts something else in the place of the log, or of its older part, harms no other file."""
    victim, folder = tmp_path / "victim", tmp_path / "r"
    victim.write_bytes(b"x" * 100)
    folder.mkdir()
    log = folder / "console.log"
    make: dict[str, Callable[[], None]] = {
        "symlink": lambda: log.symlink_to(victim),
        "hardlink": lambda: log.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(log),
        "directory": log.mkdir,
    }
    make[kind]()
    LogKeeper(tmp_path, 30).cut_all()
    assert victim.read_bytes() == b"x" * 100
    assert [path.name for path in folder.iterdir()] == ["console.log"]


def test_the_older_part_is_no_way_out(tmp_path: Path) -> None:
    """The older part is a new file, not what a link in its place leads to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"safe")
    (tmp_path / "console.log.1").symlink_to(victim)
    (tmp_path / "console.log").write_bytes(b"x" * 100)
    assert cut(tmp_path, "console.log", 30)
    assert victim.read_bytes() == b"safe"
    assert (tmp_path / "console.log.1").read_bytes() == b"x" * 30


@pytest.mark.real
async def test_a_guest_prints_for_ever(hypervisor: QemuHypervisor, start: Start, tmp_path: Path) -> None:
    """The log of a guest that does not stop printing is cut again and again while QEMU writes it, and goes on."""
    kernel = tmp_path / "guest.bin"
    await asyncio.to_thread(kernel.write_bytes, make_image(PRINT_FOR_EVER))
    process = await start(hypervisor, await hypervisor.freeze(replace(SPEC, nics=(), boot=KernelBoot(str(kernel)))))
    log = process.run_dir.console_log
    await process.cont()
    async with asyncio.timeout(60):
        for _ in range(3):
            while not await asyncio.to_thread(cut, log.parent, log.name, 10_000):  # noqa: ASYNC110 - a file's size is what is watched
                await asyncio.sleep(0.01)
    await process.stop()
    after = await asyncio.to_thread(log.read_bytes)
    assert b"\0" not in after
    assert len(await asyncio.to_thread(log.with_name("console.log.1").read_bytes)) == 10_000

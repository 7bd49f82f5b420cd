"""What a QEMU can do is what it says itself; a QEMU that dies over a question has said nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.core.guest import Acceleration
from vmferry.qemu import QemuBinaryConfig
from vmferry.qemu.probe import ProbeCache, Prober

#: Speaks QMP on the descriptor that it inherits; at the question for drivers it says no, or dies while a file is there.
QEMU = """
import json, pathlib, re, socket, sys
fd = int(re.search(r"id=qmp,fd=(\\d+)", " ".join(sys.argv)).group(1))
peer = socket.socket(fileno=fd)
def say(message):
    peer.sendall(json.dumps(message).encode() + b"\\r\\n")
say({"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}, "capabilities": []}})
answers = {"query-version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}, "qmp_capabilities": {},
           "query-migrate-parameters": {}}
while data := peer.recv(65536):  # one order at a time, without a line's end
    asked = json.loads(data)
    back = {"id": asked["id"]} if "id" in asked else {}
    if asked["execute"] != "device-list-properties":
        say({"return": answers.get(asked["execute"], []), **back})
    elif pathlib.Path(sys.argv[1]).exists():
        sys.exit(134)
    else:
        say({"error": {"class": "DeviceNotFound", "desc": "no such device"}, **back})
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """While this file is there QEMU dies at the question."""
    return tmp_path / "mine"


@pytest.fixture
def prober(tmp_path: Path, mine: Path) -> Prober:
    """Asks the stand-in; keeps answers in a directory."""
    program = tmp_path / "qemu.py"
    program.write_text(QEMU)
    return Prober(QemuBinaryConfig((sys.executable, str(program), str(mine))), ProbeCache(tmp_path / "cache"))


async def test_no_driver_by_its_own_word(prober: Prober, tmp_path: Path) -> None:
    """A driver that QEMU does not know is one that it does not have, and the answer is kept."""
    assert (await prober.query_facts(Acceleration.TCG)).devices == frozenset()
    assert len(list((tmp_path / "cache").iterdir())) == 1


async def test_a_qemu_that_dies_has_not_answered(prober: Prober, mine: Path, tmp_path: Path) -> None:
    """When QEMU dies over the question nothing is known and nothing is kept: the next question is asked again."""
    await asyncio.to_thread(mine.touch)
    with pytest.raises(Broken, match="device-list-properties"):
        await prober.query_facts(Acceleration.TCG)
    assert not (tmp_path / "cache").exists()
    await asyncio.to_thread(mine.unlink)
    assert (await prober.query_facts(Acceleration.TCG)).version == (10, 0, 2)

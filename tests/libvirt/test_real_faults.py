"""Some faults in a libvirt domain's move, on real daemons; all of them: ./run bench libvirt_faults."""

from __future__ import annotations

import pytest

from vmferry.lab.libvirt import libvirt_missing
from vmferry.lab.libvirt.faults.cells import cell_named
from vmferry.lab.libvirt.faults.hold import gdb_missing
from vmferry.lab.libvirt.faults.runner import run_cell
from vmferry.lab.libvirt.faults.stage import Stage

MISSING = libvirt_missing() or gdb_missing()
pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.timeout(400),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]
#: One that libvirt ends by itself, one that needs our policy again, and those that a guest would run twice in.
CELLS = (
    "prepare: destination QEMU",
    "perform: vmferry",
    "finish: destination libvirtd",
    "finish-done: destination libvirtd",
    "finish-done, held: destination libvirtd",
    "finish-done, held: link cut",
)


async def test_as_the_table_says() -> None:
    """Never two, defined where it runs alone, and `recover` says so and has nothing more to do."""
    async with Stage() as stage:
        for name in CELLS:
            result = await run_cell(stage, cell_named(name))
            assert result.passed, [name, *result.complaints, *result.history]

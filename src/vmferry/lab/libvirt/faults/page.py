"""The faults of libvirt's moves as people read them: docs/libvirt-faults.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vmferry.lab.libvirt.faults.cells import EXPECTED, Fault

Table = Callable[[Sequence[str], Iterable[Sequence[object]]], str]

_HEAD = """# Faults in a libvirt domain's move

What becomes of a domain of libvirt's when something dies, or the hosts lose sight of each other, in every phase of its
move, and what `vmferry recover` then does. What is expected stood in the source (`vmferry.lab.libvirt.faults.cells`)
before it was run. libvirt commits the move, so what happens in Finish and Confirm is libvirt's: the table says what
that is.

"""

_METHOD = """
## How to read it

- `source`, `destination`: the guest runs there alone, and is defined there alone. `off`: the QEMU that had it died; it
  runs nowhere, nothing of it stands, and `recover` says so. `lost`: in post-copy one of the two QEMUs died, and what is
  left can only be ended, which `recover` says and leaves to a person. `held`: nobody runs it, and `recover` says why,
  and what a person has to look at (exit code 9).
- Where libvirt's outcome depends on which of two of its threads is faster, both are expected.

## How it is done

- Two network namespaces with a libvirtd each (its own /run, /var/lib and /etc), peer-to-peer, keepalive every 2 s. The
  micro guest (64 MiB, a beat every millisecond) is a persistent domain with a disk on a block device that both see.
- The move is the real command, `vmferry migrate`. A phase is held by gdb at a function of the daemon's QEMU driver:
  *begin* and *prepare* where the source's and then the destination's daemon has made its migration cookie, *finish*
  before the destination's vCPUs are started, *finish-done* after, *confirm* before the source's process is ended.
  *perform* is not held: memory is being sent, slowly; *post-copy* is the same after `virsh migrate-postcopy`, when the
  guest has begun to beat at the destination.
- The rows called *held* are moves of the same domain without a disk: no lock keeps it from running twice, so the move
  holds it at its arrival until the source has no process of it any more ([libvirt.md](libvirt.md)). In them *finish* is
  held as it begins.
- Everything is killed with SIGKILL; a daemon is started again a second later. A cut takes the link between the hosts
  away until the command has ended.
- Then `vmferry recover` is asked until it has nothing more to do.

## What the table does not show

- A domain without a disk that QEMU locks and that is not held at its arrival (`--libvirt held=no`, or post-copy
  allowed): with the destination's libvirtd killed in *finish-done*, libvirt let both copies run (seen for 6 s, then
  they were ended by hand); `recover` told it, and touched neither.
- After the source's QEMU died in post-copy, the source's daemon keeps its job, and the definition, until the half at
  the destination is destroyed.
- A finish that fails after the domain was defined at the destination leaves that definition there: `vmferry migrate`
  removes it, and `recover` does when `migrate` cannot.

## What is looked at

- **Never two**: a packet socket on each host's loopback sees every beat of the guest. No beat of the source may come
  after the first one of the destination, however much later.
- Where it runs, where it is defined, and that `recover` says the same: owner and exit code.

Source: `bench/libvirt_faults.py`; results: `bench/results/libvirt_faults.json`.
"""


def page(conditions: str, cells: Sequence[Mapping[str, Any]], table: Table) -> str:
    """Return the page.

    Args:
        conditions: under which it was seen, as a paragraph.
        cells: records of results.
        table: makes a Markdown table.
    """
    seen = {(cell["phase"], cell["fault"]): cell for cell in cells}
    rows = [
        [f"**{row}**", *(_short(seen.get((row, fault))) for fault in Fault)]
        for row in dict.fromkeys(cell.row for cell in EXPECTED)
    ]
    details = [
        [
            cell.row,
            cell.fault,
            expected.text,
            seen.get((cell.row, cell.fault), {}).get("seen", "not run"),
            seen.get((cell.row, cell.fault), {}).get("recovered", ""),
            expected.why,
        ]
        for cell, expected in EXPECTED.items()
    ]
    failed = [cell for cell in cells if cell["verdict"] != "pass"]
    complaints = "".join(
        f"- **{cell['phase']}: {cell['fault']}**: {'; '.join(cell['complaints'])}\n" for cell in failed
    )
    return "".join(
        (
            _HEAD,
            conditions,
            f"\n{len(cells) - len(failed)} of {len(EXPECTED)} cells passed.\n\n",
            table(["", *Fault], rows),
            f"\n### Not passed\n\n{complaints}" if failed else "",
            _METHOD,
            "\n## Each cell\n\n",
            table(["Phase", "Fault", "Expected", "Seen", "What `recover` did", "Why it is expected"], details),
        )
    )


def _short(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    return str(cell["seen"]) if cell["verdict"] == "pass" else f"**FAIL** ({cell['seen']})"

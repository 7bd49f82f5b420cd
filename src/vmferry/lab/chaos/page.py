"""The fault matrix as people read it: docs/fault-matrix.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vmferry.core.capabilities import Transport
from vmferry.sim.matrix import CELLS, PLACES

Table = Callable[[Sequence[str], Iterable[Sequence[object]]], str]

_HEAD = """# The fault matrix

What becomes of a real guest when something dies, or the hosts lose sight of each other, in every state of a hand-over.
The outcome of each cell is foretold *before* it is run, by living it through in memory (`vmferry.sim.matrix.foretell`,
also in [handover.md](handover.md)); then it is done to real processes.

"""

_METHOD = """
## How to read it

A cell shows where the guest was seen: `source` or `destination` (it runs there, and only there), `held` (it stands,
nobody runs it), `lost` (the only QEMU that held its memory died, or one of the two that held a part of it; its owner
is certain and can boot it again). "held, then destination" means: held during the cut, at the destination after it.
Where the foretelling allows other outcomes too, because it depends on how far the QEMUs had come, or on whether an
agent was asked while it was away, they stand below. `*` marks cells in which the QEMU to be killed was not there: not
started yet, or dead already. **FAIL** and **unknown** cells are listed below the tables with their reasons.

"held, then source" in `postcopy-ordered` and `postcopy-crossing` was seen first and foretold afterwards: the source's
question is lost in the cut, TCP repeats it seconds later, and two seconds without an answer count as no.

## How it is done

- Two hosts as network namespaces, on each a real agent under its supervisor and real QEMU; stream and agents speak
  through TLS. Every cell has a guest of its own (micro, 64 MiB, beats every millisecond).
- The hand-over is held in the state by its own agent: after the state was journalled, before its orders begin.
  `device` is held by SIGSTOP of the destination's QEMU, `source-completed` by freezing the destination's agent,
  `destination-loaded` by SIGSTOP of the source's QEMU after it has sent everything.
- `aborting` is a cancel while the guest stands still, `discarding` one during pre-copy; `orphaned`, `returning` and
  `giving-back` follow the death of a QEMU, so the fault of the cell is the second one.
- Post-copy begins as soon as memory is being sent, with 3 MiB/s, so that pages are missing for seconds. In
  `postcopy-crossing` the fault comes before `migrate-continue`; in `postcopy-crossing continued` after it, while the
  destination's QEMU is stopped (SIGSTOP) and has read nothing. `postcopy-paused` follows a reset of the stream, with
  the destination's agent frozen: nobody recovers it until the fault has come. A QEMU that dies in post-copy takes the
  guest with it unless everything had arrived.
- Agents and QEMUs are killed with SIGKILL; where both die, in the same moment. The supervisor starts the agent again.
- *link cut*: the management link goes down until the source has decided all that it can decide alone, for 5 s at
  least and 40 s at most, more than every deadline of a guest that stands still; TCP gives up after three repetitions
  instead of fifteen. *link cut shortly*: 1.5 s, TCP as it comes, so that the stream survives. Then the link comes back.
- `--resume` keeps the cells that passed in an earlier run, also one of an earlier version, and runs the others.

## What is looked at

- **Never two** is watched, not sampled: a packet socket on each host's loopback sees every beat, stamped by the
  kernel. Beats are written by the vCPU's own thread, so a vCPU that runs is heard and one that stands is not. No beat
  of the source may come after the first one of the destination.
- The outcome, and where it was during a cut.
- Exactly one host has the guest in its journal, owns it by its own token with the epoch that belongs there (1 or 3 at
  the source, 2 at the destination), and its agent's word on the run state is what the beats say.
- QEMU processes are found in /proc: none anywhere but at the owner. No reservation, no unfinished hand-over, no
  socket.
- The guest's oracle: no written page lost or stale.
- `vmferry recover --json` ends with 0, names the hand-over, the owner and what runs where; looked at once more after
  it.
"""


def page(made: str, cells: Sequence[Mapping[str, Any]], table: Table, link: Transport = Transport.TCP) -> str:
    """Return the page; faults of which no cell was run have no column.

    Args:
        made: under which conditions.
        cells: each cell's record (`Result.record`).
        table: makes a Markdown table.
        link: how streams travelled.
    """
    faults = [fault for fault in CELLS if any(cell["fault"] == fault for cell in cells)]
    by_place = {(cell["side"], cell["state"], cell["fault"]): cell for cell in cells}
    travelled = "" if link is Transport.TCP else f"\nStreams went by `--link {link}`.\n"
    parts = [_HEAD, made, travelled, f"\n{_sum(cells)}\n"]
    for side, places in PLACES.items():
        rows = [
            (f"`{place}`", *(_cell(by_place.get((str(side), str(place), fault))) for fault in faults))
            for place in places
        ]
        parts += [f"\n## In a state of the {side}\n\n", table(("State", *faults), rows)]
    return "".join([*parts, _not_passed(cells), _METHOD])


def _sum(cells: Sequence[Mapping[str, Any]]) -> str:
    count = {verdict: sum(cell["verdict"] == verdict for cell in cells) for verdict in ("pass", "fail", "unknown")}
    slowest = max(cells, key=lambda cell: float(cell["seconds"]))
    return (
        f"**{count['pass']} of {len(cells)} cells passed**, {count['fail']} failed, {count['unknown']} could not be"
        f" brought about. The longest took {slowest['seconds']:.0f} s"
        f" ({slowest['side']}.{slowest['state']}: {slowest['fault']})."
    )


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "not run"
    star = "*" if cell["remarks"] else ""
    if cell["verdict"] != "pass":
        return f"**{cell['verdict'].upper() if cell['verdict'] == 'fail' else 'unknown'}** {cell['seen']}{star}"
    others = [outcome for outcome in cell["expected"] if outcome != cell["seen"]]
    return f"{cell['seen']}{star}" + "".join(f"<br>(or {other})" for other in others)


def _not_passed(cells: Sequence[Mapping[str, Any]]) -> str:
    bad = [cell for cell in cells if cell["verdict"] != "pass"]
    if not bad:
        return ""
    lines = [
        f"- {cell['side']}.{cell['state']}: {cell['fault']}: **{cell['verdict']}**; expected"
        f" {' or '.join(cell['expected'])}, seen {cell['seen'] or 'nothing'}: {'; '.join(cell['complaints'])}"
        for cell in bad
    ]
    return "\n".join(["\n## Cells that did not pass\n", *lines, ""])

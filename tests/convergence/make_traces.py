"""Writes the stored traces anew: python -m tests.convergence.make_traces. A test holds that this changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tests.convergence.kit import FACTS, GUEST_PAGES, TRACES, ended, record, rounds

from vmferry.core.convergence import Goal, Round
from vmferry.core.convergence.trace import Ended, Item, Trace, encode
from vmferry.core.units import Milliseconds


def slowly(count: int) -> list[Round]:
    """Return rounds of which each leaves a tenth less than the one before: only a limit of rounds sees an end."""
    pages = [GUEST_PAGES // 5]
    while len(pages) < count:
        pages.append(pages[-1] * 9 // 10)
    return rounds(*pages)


#: name -> (what it is for, its rounds)
HAND_MADE: dict[str, tuple[str, list[Round]]] = {
    "few-pages": ("rounds that leave 4000, 400, 51, 50, 49 pages", rounds(4000, 400, 51, 50, 49)),
    "diffusion": (
        "round 3 sends 4000 pages while as many are dirtied, round 4 sends 4000 while 4001 are",
        rounds(20_000, 4000, 4000, 4001, first=GUEST_PAGES),
    ),
    "rapid-writes": (
        "dirtied: 9000, 9000 (rapid), 3000, 2000, 2001 (rapid again), 1000",
        rounds(9000, 9000, 3000, 2000, 2001, 1000),
    ),
    "thirty-rounds": ("35 rounds, each leaves a tenth less", slowly(35)),
    "no-gain": ("leaves 10000, 9500 (5 % less), 9026 (still less than 95 %: 4.99 %)", rounds(10_000, 9500, 9026)),
    "few-sent": (
        "round 3 sends 50 pages, round 4 sends 49; more is left than that",
        [ended(1, GUEST_PAGES, 9000), ended(2, 9000, 60), ended(3, 50, 70), ended(4, 49, 80)],
    ),
}
LIVE = {
    "live-converging": ("converging", "256 MiB, writes 20 MiB/s over 48 MiB; 40 MiB/s, limit 100 ms; QEMU 10.0.2, TCG"),
    "live-faster": ("faster", "256 MiB, writes 40 MiB/s over 96 MiB; 40 MiB/s, limit 100 ms; QEMU 10.0.2, TCG; cut"),
}


def traces() -> Iterator[tuple[str, list[str]]]:
    """Yield each stored trace's name and lines."""
    for name, (note, course) in HAND_MADE.items():
        items: tuple[Item, ...] = (*course, Ended(Milliseconds(course[-1].at_ms + 1), "cut"))
        yield name, list(encode(Trace("none", FACTS, Goal(), items, f"made by hand: {note}")))
    for name, (source, note) in LIVE.items():
        yield name, list(encode(record(source, note)))


if __name__ == "__main__":
    for name, lines in traces():
        (TRACES / f"{name}.ndjson").write_text("\n".join(lines) + "\n", "utf-8")

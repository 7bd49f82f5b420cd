"""A guest that writes faster than its link carries, moved with the write throttle and without.

    python -m vmferry.lab.throttled_move [--link MBIT] [--runs N]

First with `--throttle 40-writes` from host-a to host-b, then back without, under the same limits and QEMU's plain
rule; the second is cancelled when it has taken as many rounds as the first and has not arrived. Prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
from dataclasses import dataclass

from vmferry.api.models import HandoverView
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.progress import Outcome
from vmferry.core.units import BytesPerSecond
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import migrate, started, wait_finished

#: MiB/s: more than any machine does under TCG.
_UNLIMITED = 4000
_PAGES_PER_MIB = 256
_LOOK_EVERY_S = 0.25

#: Writes 64 MiB one page after the other as fast as it can, under the helper.
GREEDY = GuestPlan("linux", memory_mib=224, rate=_UNLIMITED, throttle=True)


@dataclass(frozen=True, slots=True)
class Course:
    """One move as it went.

    Attributes:
        outcome: how it ended.
        rounds: that it took, or after which it was cancelled.
        total_ms: of the hand-over.
        downtime_ms: QEMU's figure; None when the guest did not move.
        free_pages_per_s: that the guest wrote before, on its own clock.
        moving_pages_per_s: that it wrote while memory was copied.
        stall_ms: the longest that its own meter saw meanwhile.
        oracle: what it says of its memory afterwards.
    """

    outcome: Outcome
    rounds: int
    total_ms: float
    downtime_ms: float | None
    free_pages_per_s: float
    moving_pages_per_s: float
    stall_ms: float
    oracle: str

    @property
    def lost_work(self) -> float:
        """The part of its work that the guest did not do while its memory was copied, 0 to 1."""
        return max(0.0, 1 - self.moving_pages_per_s / self.free_pages_per_s)


async def course(
    lab: Lab, guest: GuestRun, destination: str, bandwidth: BytesPerSecond, *, throttle: bool, most_rounds: int = 1000
) -> Course:
    """Move a guest, or cancel the move when it has taken so many rounds and goes on."""
    free = await _pages_per_s(guest, 2.0)
    options: dict[str, object] = {"max_bandwidth": bandwidth, **({"throttle": "40-writes"} if throttle else {})}
    source = guest.host
    handover = await migrate(lab, guest, destination, options)
    first, last = await _until_over(lab, guest, handover, most_rounds)
    view = await wait_finished(lab, source, handover)
    report = view.report
    if report is not None and report.outcome is Outcome.MOVED:
        guest.moved_to(destination)
    stall = await _numbers(guest, "stalls")
    return Course(
        outcome=Outcome.HELD if report is None else report.outcome,
        rounds=0 if report is None else report.rounds or 0,
        total_ms=0.0 if report is None else report.total_ms or 0.0,
        downtime_ms=None if report is None else report.downtime_ms,
        free_pages_per_s=free,
        moving_pages_per_s=_speed(first, last),
        stall_ms=stall["max_us"] / 1000,
        oracle=await guest.oracle(),
    )


async def _until_over(
    lab: Lab, guest: GuestRun, handover: str, most_rounds: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Look now and then until a hand-over is over, and cancel it when it takes more rounds than that.

    Returns what the guest said first and last while its memory was copied: an order is in force by the first reading.
    """
    api = lab.hosts[guest.host].api
    seen: list[dict[str, int]] = []
    while True:
        view = HandoverView.model_validate(await api.get(f"/v1/handovers/{handover}"))
        if view.progress is not None and view.state == "precopy":
            with contextlib.suppress(VmferryError, OSError):  # it stops for its last pages meanwhile
                seen.append(await _numbers(guest, "status", 1.0))
        if view.finished or (view.progress is not None and view.progress.round > most_rounds):
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    if not view.finished:
        await api.post(f"/v1/handovers/{handover}/cancel")
    if not seen:
        raise Broken(f"Guest {guest.name} said nothing while its memory was copied")
    return seen[0], seen[-1]


async def _pages_per_s(guest: GuestRun, seconds: float) -> float:
    first = await _numbers(guest, "status")
    await asyncio.sleep(seconds)
    return _speed(first, await _numbers(guest, "status"))


def _speed(first: dict[str, int], last: dict[str, int]) -> float:
    """Return pages per second of the guest's own clock, which stands still while the guest does."""
    return (last["writes"] - first["writes"]) * 1000 / max(1, last["uptime_ms"] - first["uptime_ms"])


async def _numbers(guest: GuestRun, question: str, timeout_s: float = 60.0) -> dict[str, int]:
    answer = await guest.ask(question, "ready" if question == "status" else question, timeout_s)
    return {key: int(value) for key, value in re.findall(r"\b([a-z_]+)=(\d+)\b", answer)}


def _row(name: str, seen: Course) -> str:
    downtime = "-" if seen.downtime_ms is None else f"{seen.downtime_ms:.0f} ms"
    cells = [
        name,
        str(seen.outcome),
        str(seen.rounds),
        f"{seen.total_ms / 1000:.1f} s",
        downtime,
        f"{seen.free_pages_per_s / _PAGES_PER_MIB:.0f} MiB/s",
        f"{seen.moving_pages_per_s / _PAGES_PER_MIB:.1f} MiB/s",
        f"{seen.lost_work:.0%}",
        f"{seen.stall_ms:.0f} ms",
        " ".join(seen.oracle.split()[:2]),
    ]
    return f"| {' | '.join(cells)} |"


async def _measure(link: BytesPerSecond, runs: int) -> None:
    async with Lab() as lab:
        facts = await lab.hosts["host-a"].api.get("/v1/host")
        version = ".".join(map(str, lab.hosts["host-a"].qemu.version))
        print(f"QEMU {version}, {facts['acceleration_tag']}; 64 MiB written in turn, stream limited to {link} B/s\n")
        guest = await started(lab, GREEDY)
        print(
            "| move | outcome | rounds | total | downtime | writes before | writes meanwhile | lost | stall | memory |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for _ in range(runs):
            slowed = await course(lab, guest, "host-b", link, throttle=True)
            print(_row("`--throttle 40-writes`", slowed))
            if slowed.outcome is not Outcome.MOVED:
                return
            plain = await course(lab, guest, "host-a", link, throttle=False, most_rounds=slowed.rounds)
            print(_row("without", plain))
            if plain.outcome is not Outcome.MOVED and runs > 1:
                back = await course(lab, guest, "host-a", link, throttle=True)
                print(_row("`--throttle 40-writes`", back))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m vmferry.lab.throttled_move")
    parser.add_argument("--link", type=int, default=200, metavar="MBIT", help="what the stream may take, in Mbit/s")
    parser.add_argument("--runs", type=int, default=1)
    asked = parser.parse_args()
    asyncio.run(_measure(BytesPerSecond(asked.link * 1_000_000 // 8), asked.runs))


if __name__ == "__main__":
    main()

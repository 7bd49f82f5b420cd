"""Measures the write throttle in a linux guest under TCG: ``python -m vmferry.lab.guests.measure_throttle``.

Two guests whose workload writes as fast as it can, one of them under the helper; only one runs at a time. First the
helper's idle cost, in turns; then, in the guest that has it, each slot length: a workload that wants all it can get
(greedy) and one that wants less than its budget (modest), free and held.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

from vmferry.guest_throttle import ThrottleOrder
from vmferry.lab.guests.build import build
from vmferry.lab.guests.throttled import ThrottledGuest, throttled_guest
from vmferry.lab.toolchain import cache_dir, find_qemus

_UNLIMITED = 4000  # MiB/s: more than any machine does under TCG
_MODEST = 2  # MiB/s, 512 pages/s: within the budget of every slot length here


async def idle_cost(bare: ThrottledGuest, helped: ThrottledGuest, turns: int, seconds: float) -> None:
    """Print the workload's speed without the helper and with it idle, in turns; neither runs beside the other."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(turns):
        for with_helper, guest in ((False, bare), (True, helped)):
            await guest.qmp.execute("cont")
            speeds[with_helper].append(await guest.writes_per_s(seconds))
            await guest.qmp.execute("stop")
    for with_helper, name in ((False, "no helper"), (True, "helper idle")):
        found = speeds[with_helper]
        print(
            f"{name:12} {statistics.median(found):8.0f} pages/s, median of {turns}"
            f" (least {min(found):.0f}, most {max(found):.0f})"
        )


async def one_slot_length(guest: ThrottledGuest, slot_ms: int, seconds: float) -> None:
    """Print what the guest does before, while and after an order is in force, and with a modest workload."""
    order = ThrottleOrder("measure", slot_ms=slot_ms, max_stall_ms=max(100, slot_ms))
    print(f"slot {slot_ms} ms, 40 writes, bound {order.dirty_bound / 2**20:.1f} MiB/s for each process:")
    async with await guest.open_throttle() as channel:
        for rate, before, during in ((_UNLIMITED, "greedy", "held"), (_MODEST, "modest", "held")):
            await guest.ask(f"rate {rate}")
            await guest.writes_per_s(seconds)  # what the workload still owes at its former rate
            await _phase(guest, before, seconds)
            await channel.begin(order)
            await _phase(guest, during, seconds)
            ended = await channel.end()
            print(f"         {ended}")
        await guest.ask(f"rate {_UNLIMITED}")
        await _phase(guest, "after", seconds)
    print(f"  {await guest.ask('oracle')}")


async def _phase(guest: ThrottledGuest, name: str, seconds: float) -> None:
    await guest.ask("reset")
    pages = await guest.writes_per_s(seconds)
    stall = (await guest.numbers("stalls"))["max_us"] / 1000
    dirty = await guest.dirty_mib_per_s()
    print(f"  {name:6} {pages:8.0f} pages/s, longest stall {stall:6.1f} ms, QEMU's dirty rate {dirty:4d} MiB/s")


async def _measure(turns: int, seconds: float, slots: list[int]) -> None:
    qemu = max(find_qemus(), key=lambda found: found.version)
    image = await asyncio.to_thread(build, "linux", cache_dir())
    print(f"QEMU {'.'.join(map(str, qemu.version))}, TCG, 1 vCPU; workload: 64 MiB, sequential, as fast as it can")
    with tempfile.TemporaryDirectory(prefix="vmf-") as one, tempfile.TemporaryDirectory(prefix="vmf-") as two:
        async with (
            throttled_guest(qemu, image, Path(one), helper=False, rate=_UNLIMITED) as bare,
            throttled_guest(qemu, image, Path(two), helper=True, rate=_UNLIMITED) as helped,
        ):
            for guest in (bare, helped):
                await guest.qmp.execute("stop")
            await idle_cost(bare, helped, turns, seconds)
            await helped.qmp.execute("cont")
            for slot_ms in slots:
                await one_slot_length(helped, slot_ms, seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m vmferry.lab.guests.measure_throttle")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--slots", type=int, nargs="*", default=[10, 20, 50])
    asked = parser.parse_args()
    asyncio.run(_measure(asked.turns, asked.seconds, asked.slots))


if __name__ == "__main__":
    main()

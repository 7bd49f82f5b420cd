"""The demonstration: two hosts on this machine, a guest that writes memory, moved live there and back.

    python -m vmferry.lab.demo [--keep] [--plain] [--link MBIT]
    python -m vmferry.lab.demo --sriov       # another one: see lab/sriov_demo.py

Everything it starts is gone when it ends, also after Ctrl-C at any moment. The exit code is 0 only if both moves
arrived and the guest's memory was whole after each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from rich.console import Console

from vmferry.core.errors import Broken, VmferryError
from vmferry.core.units import BytesPerSecond
from vmferry.lab import enrolment, sriov_demo
from vmferry.lab.commands import end
from vmferry.lab.demo_table import Move, moves_table
from vmferry.lab.guest_plans import GUEST_ADDRESS, linux_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.probe import Probe, outage
from vmferry.lab.registry import sweep

MEMORY_MIB = 512
WRITES_MIB_S = 20
#: Long enough that the largest gap without a migration is a fair comparison.
BASELINE_S = 3.0
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the person asked for."""

    keep: bool = False
    plain: bool = False
    link: BytesPerSecond | None = None
    sriov: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; return the exit code."""
    console = Console(highlight=False)
    try:
        return asyncio.run(_until_signal(console, parse(arguments)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.show_cursor(show=True)  # the migration's display may have been cut short
        console.print("\nInterrupted. Everything that was started is gone.")
        return INTERRUPTED
    except VmferryError as error:
        Console(stderr=True, highlight=False).print(f"demo: {error}", style="red")
        return error.exit_code


def parse(arguments: list[str] | None) -> Options:
    """Return the options; ends the program on `--help` and on what it does not know."""
    parser = argparse.ArgumentParser(
        prog="vmferry lab demo", description="Move a guest there and back on this machine."
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running until Enter is pressed")
    parser.add_argument("--plain", action="store_true", help="do not encrypt the migration stream")
    parser.add_argument("--link", type=int, metavar="MBIT", help="limit the link between the hosts, in Mbit/s")
    parser.add_argument(
        "--sriov", action="store_true", help="two emulated hosts instead, and a guest with a virtual function (SR-IOV)"
    )
    asked = parser.parse_args(arguments)
    if asked.sriov and (asked.keep or asked.plain or asked.link):
        parser.error("--sriov goes alone")
    link = BytesPerSecond(asked.link * 1_000_000 // 8) if asked.link else None
    return Options(asked.keep, asked.plain, link, asked.sriov)


async def _until_signal(console: Console, options: Options) -> int:
    """Run, and end as Ctrl-C does when the terminal closes or somebody asks politely."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)  # type: ignore[union-attr]  # a coroutine runs in a task
    return await demonstrate(console, options)


async def demonstrate(console: Console, options: Options) -> int:
    """Show the whole journey; return the exit code."""
    say: Say = console.print
    for left in sweep():
        say(f"(Removed lab {left}, which an interrupted run had left.)")
    if options.sriov:
        return await sriov_demo.demonstrate(say)
    started = time.monotonic()
    say("[bold]Two hosts on this machine[/]")
    async with Lab(link=options.link) as lab:
        await introduce(lab, say)
        guest = await boot(lab, say)
        async with probing(lab, say) as probe:
            moves = [
                await move(lab, guest, probe, console, pair, options)
                for pair in (("host-a", "host-b"), ("host-b", "host-a"))
            ]
        console.print()
        console.print(moves_table(moves))
        clean = all(done.is_clean for done in moves)
        say(verdict(moves))
        if options.keep:
            await keep(lab, console)
        say(f"Cleaning up after {time.monotonic() - started:.0f} s: agents, guest, namespaces, files.")
    return 0 if clean else 1


async def introduce(lab: Lab, say: Say) -> None:
    """Say what a host is here, and what runs the guest's instructions."""
    for host in lab.hosts.values():
        where = "a network namespace" if lab.network else "an address on loopback (not root: no namespaces, no bridge)"
        version = ".".join(map(str, host.qemu.version))
        say(f"  {host.name} is {where} with an agent of its own at {host.address} and QEMU {version}.")
    if lab.network:
        say("  Between them: a link for agents and migration, and a fabric that joins their bridges for guests.")
    facts = await lab.hosts["host-a"].api.get("/v1/host")
    say(f"  Guests run under {facts['acceleration_tag']}: {facts['acceleration_reason']}")


async def boot(lab: Lab, say: Say) -> GuestRun:
    """Start the guest on host-a and wait until it works."""
    say("\n[bold]A guest that writes memory[/]")
    plan = linux_guest("web-7", memory_mib=MEMORY_MIB, rate=WRITES_MIB_S, bridge=lab.network is not None)
    load = f"{WRITES_MIB_S} MiB/s over {plan.working_set_mib} MiB"
    say(f"  web-7 is a Linux of {MEMORY_MIB} MiB. It writes {load} and knows what each page must hold,")
    say("  beats every millisecond, and answers UDP.")
    started = time.monotonic()
    guest = await GuestRun.start(lab, plan, "host-a")
    await guest.wait_ready()
    say(f"  It is up on host-a after {time.monotonic() - started:.1f} s.")
    return guest


@contextlib.asynccontextmanager
async def probing(lab: Lab, say: Say) -> AsyncIterator[Probe | None]:
    """Probe the guest from the fabric while the block runs; nothing without a bridge."""
    if not lab.network:
        say("  network_outage is not measured: it needs a bridge, and that needs root.")
        yield None
        return
    async with Probe(lab, GUEST_ADDRESS) as probe:
        await probe.wait_answered()
        say("  A prober in the fabric sends it a numbered datagram every 2 ms.")
        yield probe


async def move(
    lab: Lab, guest: GuestRun, probe: Probe | None, console: Console, pair: tuple[str, str], options: Options
) -> Move:
    """Move the guest from one host to the other with the real command, then ask its oracle.

    Raises:
        Broken: the hand-over left no report.
    """
    source, destination = pair
    console.print(f"\n[bold]{guest.name}: {source} → {destination}[/]")
    if probe:
        probe.begin(f"baseline-{destination}")
    await asyncio.sleep(BASELINE_S)  # the guest's largest gap without a migration is measured meanwhile
    if probe:
        probe.begin(f"move-{destination}")
    flags = ["--plain"] if options.plain else []
    console.print(f"[dim]$ vmferry migrate {' '.join([guest.name, destination, *flags])}[/]")
    exit_code = await on_terminal(lab, source, "migrate", guest.name, destination, *flags)
    if exit_code:
        raise Broken(f"`vmferry migrate` ended with exit code {exit_code}")
    guest.moved_to(destination)
    if probe:
        probe.begin(f"after-{destination}")
    report = await guest.last_report(source)
    oracle = await guest.oracle()
    console.print(f"  Memory of {guest.name} on {destination}: {oracle}")
    gap = None
    if probe:
        gap = outage(await probe.window(f"move-{destination}"), await probe.window(f"baseline-{destination}"))
    return Move(report, gap, oracle)


async def on_terminal(lab: Lab, host: str, *arguments: str) -> int:
    """Run the real command line with our terminal passed through; return its exit code."""
    process = await asyncio.create_subprocess_exec(*lab.command(host, *arguments), env=lab.environment())
    try:
        return await process.wait()
    finally:
        await end(process)


def verdict(moves: list[Move]) -> str:
    """Return the last word: what happened, in one line."""
    if all(done.is_clean for done in moves):
        return "Both moves arrived, and no page was lost or stale."
    bad = [f"{done.report.source} → {done.report.destination}: {done.report.outcome}, {done.oracle}" for done in moves]
    return "[red]Not clean: " + "; ".join(bad)


async def keep(lab: Lab, console: Console) -> None:
    """Say how to use what runs, and wait until Enter is pressed or the input ends."""
    console.print("\nStill running. In another terminal, for example:")
    variables = " ".join(f"{key}={value}" for key, value in enrolment.operator_environment(lab.operator).items())
    command = " ".join(lab.command("host-a", "guest", "list"))
    console.print(f"  {variables} {command}", soft_wrap=True)
    console.print("Press Enter to end and clean up.")
    loop, pressed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), pressed.set)
    with _reading(loop):
        await pressed.wait()


@contextlib.contextmanager
def _reading(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin.fileno())


if __name__ == "__main__":
    sys.exit(main())

"""Two hosts on the strict fakes: a shared network and storage that notice at once when a guest runs twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conductor.pair import GUEST, Host, Pair, wait_until

from vmferry.conductor.source import Source
from vmferry.core.guest import BiosBoot, Disk, GuestSpec
from vmferry.core.handover.states import SourceState
from vmferry.core.ids import HostName
from vmferry.core.migration import MigrationStatus, RunState
from vmferry.core.units import MIB, Bytes
from vmferry.ports.hypervisor import GuestEventKind
from vmferry.testing.fake_door import FakeRelays
from vmferry.testing.fake_hypervisor import FakeHypervisor
from vmferry.testing.fake_journal import FakeJournal
from vmferry.testing.fake_qemu import FakeLink, FakeQemu, FakeStream

HOST_A, HOST_B = HostName("host-a"), HostName("host-b")
SPEC = GuestSpec(name=GUEST, memory_bytes=Bytes(64 * MIB), boot=BiosBoot(), disks=(Disk("/srv/web-7.qcow2"),))


class WatchedLink(FakeLink):
    """A link that remembers every moment at which a guest ran twice.

    Args:
        rounds: how many rounds a stream takes.
    """

    def __init__(self, rounds: int = 2) -> None:
        super().__init__(rounds=rounds)
        self.doubled: list[str] = []
        self.keeps_device = False  #: a source stays in `device` when the destination has loaded

    def step(self) -> None:
        super().step()
        self.look("a stream moved")

    def take_locks(self, qemu: FakeQemu) -> None:
        super().take_locks(qemu)
        others = [o for o in self.running() if o is not qemu and o.guest.spec.name == qemu.guest.spec.name]
        if others:
            self.doubled.append(f"{qemu.record} was started beside {[other.record for other in others]}")

    def look(self, when: str) -> None:
        """Remember it when a guest runs twice now."""
        names = [qemu.guest.spec.name for qemu in self.running()]
        if len(names) > len(set(names)):
            self.doubled.append(f"{when}: {[qemu.record for qemu in self.running()]}")

    def alive(self) -> list[FakeQemu]:
        """Return every living process."""
        return [qemu for qemu in self.processes.values() if qemu.alive]

    def running(self) -> list[FakeQemu]:
        """Return every process whose vCPUs run."""
        return [qemu for qemu in self.alive() if qemu.state is RunState.RUNNING]

    def free_device(self) -> None:
        """Let a source leave `device`."""
        self.keeps_device = False
        self._kick()

    def _advance(self, stream: FakeStream, destination: FakeQemu) -> None:
        if not (self.keeps_device and stream.loaded and stream.status is MigrationStatus.DEVICE):
            super()._advance(stream, destination)


async def endless(host: Host, source: Source, link: FakeLink) -> FakeStream:
    """Return the hanging stream of a guest that dirties as much in each round as the round sends, in its first."""
    await wait_until(lambda: source.runner.machine.state is SourceState.PRECOPY, "it is sending")
    qemu = qemu_of(host, link)
    assert qemu is not None
    assert qemu.stream is not None
    qemu.stream.endless = True
    await end_rounds(source, qemu.stream, 0)
    return qemu.stream


async def end_rounds(source: Source, stream: FakeStream, count: int) -> None:
    """End rounds of a stream that hangs; each is read by itself."""
    for number in range(max(stream.rounds, 1), max(stream.rounds, 1) + count + 1):
        stream.rounds = number
        stream.source.emit(GuestEventKind.ROUND_ENDED, round_=number)
        await wait_until(lambda: _rounds_read(source) == stream.rounds, f"round {number} is under way")


def _rounds_read(source: Source) -> int:
    sample = source.steering.trail.last_sample
    return 0 if sample is None else sample.rounds


def make_pair(directory: Path, link: FakeLink, journal: Callable[[str], FakeJournal] = lambda _: FakeJournal()) -> Pair:
    """Return two hosts that share a link."""
    pair = Pair()
    for number, name in enumerate((HOST_A, HOST_B)):
        first = 50000 + 100 * number
        hypervisor = FakeHypervisor(name, link)
        ports, relays = range(first, first + 4), FakeRelays(link, pair.joined)
        pair.hosts[name] = Host(name, journal(name), hypervisor, directory / name, ports, pair, relays=relays)
    return pair


def qemu_of(host: Host, link: FakeLink) -> FakeQemu | None:
    """Return the process of the guest on a host, as its journal knows it."""
    row = host.journal.guest(GUEST)
    return None if row is None or row.process is None else link.processes.get(row.process.pid)

"""`FakeService`: an AgentService that records calls and answers with made-up facts; for tests of server and clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from vmferry.api import device_models as d
from vmferry.api import models as m
from vmferry.core.errors import Blocked, Blocker, NotFound, VmferryError
from vmferry.core.guest import Acceleration, BiosBoot, Desired, GuestSpec
from vmferry.core.host import GuestProbe, HostFacts, QemuFacts
from vmferry.core.ids import Epoch, GuestName, GuestUuid, HandoverId, HostName
from vmferry.core.pci import PciAddress
from vmferry.core.progress import Finished, Guarantee, Outcome, StateEntered, Step
from vmferry.core.units import GIB, MIB, Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import MigrationStatus, RunState
from vmferry.ports.stream import Ticket

_GUARANTEE = Guarantee("vmferry", "LOADED", "image locks across hosts", "Goes back to the source until it is loaded.")
_LOADED = m.PeerStatus(
    state="LOADED", run_state=RunState.PAUSED, migration_status=MigrationStatus.COMPLETED, qemu_alive=True
)


_CARD = d.PciView(
    address=PciAddress.parse("01:00.0").forms,
    ids="8086:10c9",
    kind="Ethernet controller",
    name="",
    driver="igb",
    iommu_group=11,
    group=(),
    numa_node=None,
    is_bridge=False,
    nets=("ens1",),
    disks=(),
    user=None,
    physical=None,
    functions_most=7,
    functions=(),
    settings=None,
    blockers=(),
)


class FakeConsole:
    """Echoes what is typed, in upper case; ends after `bye`."""

    def __init__(self) -> None:
        self.closed = False
        self._output: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        """Wait for output."""
        return await self._output.get()

    async def write(self, data: bytes) -> None:
        """Take input."""
        await self._output.put(data.upper() if data != b"bye" else b"")

    async def close(self) -> None:
        """Let go."""
        self.closed = True


@dataclass
class FakeService:
    """Knows one guest, web-7, and one hand-over, h1.

    `calls` has the name and the arguments of every call; `failures` makes a method raise.
    """

    name: str = "host-a"
    calls: list[tuple[object, ...]] = field(default_factory=list)
    failures: dict[str, BaseException] = field(default_factory=dict)
    hold: asyncio.Event | None = None  #: when set: `check` waits for it
    console: FakeConsole = field(default_factory=FakeConsole)
    protocol: int = m.PROTOCOL
    events: list[m.ProgressEvent] = field(default_factory=list)
    settled: asyncio.Event | None = None  #: when set: `settle` waits for it

    def _called(self, name: str, *arguments: object) -> None:
        """Record a call, or fail it as ordered."""
        self.calls.append((name, *arguments))
        if name in self.failures:
            raise self.failures[name]

    async def start(self) -> None:
        """Record it."""
        self._called("start")

    async def settle(self) -> None:
        """Record it, and wait for what the test holds back."""
        self._called("settle")
        if self.settled is not None:
            await self.settled.wait()

    async def close(self) -> None:
        """Record it."""
        self._called("close")

    def facts(self) -> HostFacts:
        """Return a host."""
        qemu = QemuFacts((10, 0, 2), *(frozenset({text}) for text in ("pc-q35-7.2", "qemu64", "events", "x", "e1000")))
        return HostFacts(
            name=HostName(self.name),
            agent_version="0",
            protocol=self.protocol,
            qemu=qemu,
            acceleration=Acceleration.TCG,
            acceleration_reason="the CPU has no virtualisation",
            acceleration_tag="TCG",
            memory_total_bytes=Bytes(24 * GIB),
            memory_free_bytes=Bytes(20 * GIB),
            bridges=frozenset({"br0"}),
            migration_ports_free=64,
        )

    def view(self, name: GuestName) -> m.GuestView:
        """Return the guest, raise NotFound for others."""
        if name != "web-7":
            raise NotFound(f"There is no guest {name} on {self.name}")
        return m.GuestView(
            name=name,
            uuid=GuestUuid("6f1b9e1a-2f2e-4f0e-9b2e-0d6b6a3c1d11"),
            host=HostName(self.name),
            owner=HostName(self.name),
            epoch=Epoch(1),
            desired=Desired.RUNNING,
            run_state=RunState.RUNNING,
            acceleration=Acceleration.TCG,
            acceleration_tag="TCG",
            pid=4711,
            busy_with=None,
            note=None,
            spec=GuestSpec(name, Bytes(GIB), boot=BiosBoot()),
            macs=(),
        )

    async def host(self) -> HostFacts:
        """Return the facts."""
        self._called("host")
        return self.facts()

    async def list_pci(self) -> d.PciList:
        """Return one card."""
        self._called("list_pci")
        return d.PciList(devices=(_CARD,))

    async def set_functions(self, body: d.SetFunctions) -> d.PciView:
        """Return the card as it was asked for."""
        self._called("set_functions", body)
        return _CARD.model_copy(update={"functions": tuple(f"0000:01:10.{2 * n}" for n in range(body.count))})

    async def set_function(self, body: d.SetFunction) -> d.PciView:
        """Return the card as it is."""
        self._called("set_function", body)
        return _CARD

    async def list_guests(self) -> m.GuestList:
        """Return the guest."""
        self._called("list_guests")
        return m.GuestList(guests=(self.view(GuestName("web-7")),))

    async def show_guest(self, name: GuestName) -> m.GuestView:
        """Return the guest."""
        self._called("show_guest", name)
        return self.view(name)

    async def run_guest(self, body: m.RunGuest) -> m.GuestView:
        """Return the guest with the given specification."""
        self._called("run_guest", body)
        return self.view(GuestName("web-7")).model_copy(update={"name": body.spec.name, "spec": body.spec})

    async def start_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Return the guest."""
        self._called("start_guest", name, body)
        return self.view(name)

    async def stop_guest(self, name: GuestName, body: m.StopGuest) -> m.GuestView:
        """Return the guest."""
        self._called("stop_guest", name, body)
        return self.view(name)

    async def pause_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Return the guest."""
        self._called("pause_guest", name, body)
        return self.view(name)

    async def resume_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Return the guest."""
        self._called("resume_guest", name, body)
        return self.view(name)

    async def attach_devices(self, name: GuestName, body: d.AttachDevices) -> m.GuestView:
        """Return the guest."""
        self._called("attach_devices", name, body)
        return self.view(name)

    async def detach_device(self, name: GuestName, body: d.DetachDevice) -> m.GuestView:
        """Return the guest."""
        self._called("detach_device", name, body)
        return self.view(name)

    async def remove_guest(self, name: GuestName) -> None:
        """Do nothing."""
        self._called("remove_guest", name)
        self.view(name)

    async def save_guest(self, name: GuestName, body: m.SaveGuest) -> m.SavedView:
        """Return what stands in its file."""
        self._called("save_guest", name, body)
        view = self.view(name)
        return m.SavedView(
            path=body.path,
            name=view.name,
            epoch=Epoch(2),
            running=True,
            qemu=(10, 0, 2),
            mapped=True,
            state_bytes=Bytes(12345),
            sha256="ab" * 32,
        )

    async def cancel_save(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Return the guest."""
        self._called("cancel_save", name, body)
        return self.view(name)

    async def restore_guest(self, body: m.RestoreGuest) -> m.GuestView:
        """Return web-7."""
        self._called("restore_guest", body)
        return self.view(GuestName("web-7"))

    async def open_console(self, name: GuestName) -> FakeConsole:
        """Return the console."""
        self._called("open_console", name)
        self.view(name)
        return self.console

    async def check(self, name: GuestName, body: m.CheckRequest) -> m.CheckReply:
        """Find nothing."""
        self._called("check", name, body)
        if self.hold is not None:
            await self.hold.wait()
            self._called("check ended")
        return m.CheckReply(blockers=(), guarantee=_GUARANTEE)

    async def migrate(self, name: GuestName, body: m.MigrateRequest) -> m.MigrateReply:
        """Open h1; to host-x everything is blocked."""
        self._called("migrate", name, body)
        if body.destination == "host-x":
            blocker = Blocker("memory.too-small", "host-x has 1.0 MiB, the guest needs 1.0 GiB", "add memory")
            raise Blocked(f"Guest {name} cannot move to host-x", owner=self.name, blockers=(blocker,))
        return m.MigrateReply(handover=HandoverId("h1"))

    def handover(self, handover: HandoverId) -> m.HandoverView:
        """Return h1, raise NotFound for others."""
        if handover != "h1":
            raise NotFound(f"There is no hand-over {handover} on {self.name}")
        return m.HandoverView(
            handover=handover,
            guest=GuestName("web-7"),
            side="source",
            source=HostName(self.name),
            destination=HostName("host-b"),
            state="PRECOPY",
            step=Step.COPY,
            owner=self.name,
            finished=False,
            created_at=1000.0,
        )

    async def list_handovers(self) -> m.HandoverList:
        """Return h1."""
        self._called("list_handovers")
        return m.HandoverList(handovers=(self.handover(HandoverId("h1")),))

    async def show_handover(self, handover: HandoverId) -> m.HandoverView:
        """Return h1."""
        self._called("show_handover", handover)
        return self.handover(handover)

    async def watch_handover(self, handover: HandoverId) -> AsyncIterator[m.ProgressEvent]:
        """Return `events`, then an end; with `failures["watch"]` the middle fails."""
        self._called("watch_handover", handover)
        self.handover(handover)
        return self._events()

    async def _events(self) -> AsyncIterator[m.ProgressEvent]:
        """Yield the events."""
        yield StateEntered(Milliseconds(0.0), "CHECKING", Step.RESERVE, self.name)
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(self.failures.get("watch"), VmferryError):
            raise self.failures["watch"]
        for event in self.events:
            yield event
        yield Finished(Milliseconds(9.0), Outcome.MOVED, "host-b", None, None, (), None)

    async def trace_handover(self, handover: HandoverId) -> AsyncIterator[dict[str, object]]:
        """Return a trace of two lines."""
        self._called("trace_handover", handover)
        self.handover(handover)
        return self._trace()

    @staticmethod
    async def _trace() -> AsyncIterator[dict[str, object]]:
        """Yield the lines."""
        yield {"vmferry_trace": 1, "policy": "qemu"}
        yield {"t": "end", "at_ms": 9.0, "how": "done", "downtime_ms": None}

    async def cancel_handover(self, handover: HandoverId, body: m.Nothing) -> m.HandoverView:
        """Return h1."""
        self._called("cancel_handover", handover, body)
        return self.handover(handover)

    async def limit_handover(self, handover: HandoverId, body: m.LimitRequest) -> m.HandoverView:
        """Return the hand-over."""
        self._called("limit_handover", handover, body)
        return self.handover(handover)

    async def probe_link(self, body: m.ProbeLink) -> m.LinkView:
        """Have measured 100 MB/s behind a device of 10 Gbit/s."""
        self._called("probe_link", body)
        measured = m.MeasuredLink(
            bytes_per_second=BytesPerSecond(10**8),
            is_least=False,
            round_trip_ms=Milliseconds(0.2),
            age_s=0.004,
            counts=True,
        )
        return m.LinkView(
            source=HostName(self.name),
            destination=HostName(body.destination),
            bandwidth=measured.bytes_per_second,
            told_by="measured",
            limit=BytesPerSecond(1_250_000_000),
            limited_by="device",
            device="speed of eth0",
            measured=measured,
        )

    async def recover(self, body: m.RecoverRequest) -> m.RecoverReply:
        """Find nothing."""
        self._called("recover", body)
        return m.RecoverReply(findings=())

    async def recover_fenced(self, body: m.FencedRequest) -> m.RecoverReply:
        """Find nothing."""
        self._called("recover_fenced", body)
        return m.RecoverReply(findings=())

    async def hello(self, peer: HostName, body: m.HelloRequest) -> m.HelloReply:
        """Return the facts."""
        self._called("hello", peer, body)
        return m.HelloReply(name=HostName(self.name), protocol=self.protocol, agent_version="0", facts=self.facts())

    async def ping(self, peer: HostName, body: m.Nothing) -> m.PingReply:
        """Return two stamps."""
        self._called("ping", peer, body)
        return m.PingReply(received_ns=1, sent_ns=2)

    async def probe(self, peer: HostName, body: m.ProbeRequest) -> GuestProbe:
        """Find everything in order."""
        self._called("probe", peer, body)
        return GuestProbe((), frozenset(), frozenset(), frozenset(), ())

    async def expect_probe(self, peer: HostName, body: m.Nothing) -> m.ProbeOffer:
        """Let one in that nobody listens for."""
        self._called("expect_probe", peer, body)
        return m.ProbeOffer(probe=HandoverId("probe-1"), address="10.77.0.2", ticket=Ticket(7717, "secret"))

    async def probe_result(self, peer: HostName, body: m.ProbeResultRequest) -> m.ProbeResult:
        """Have seen 100 MB/s."""
        self._called("probe_result", peer, body)
        return m.ProbeResult(bytes_per_second=BytesPerSecond(10**8), is_least=False, total_bytes=Bytes(MIB))

    async def reserve(self, peer: HostName, handover: HandoverId, body: m.ReserveRequest) -> m.ReserveReply:
        """Return an address."""
        self._called("reserve", peer, handover, body)
        return m.ReserveReply(address="10.77.0.2", port=49152)

    async def wait_loaded(self, peer: HostName, handover: HandoverId, body: m.WaitLoadedRequest) -> m.PeerStatus:
        """Be loaded."""
        self._called("wait_loaded", peer, handover, body)
        return _LOADED

    async def commit(self, peer: HostName, handover: HandoverId, body: m.CommitRequest) -> m.CommitReply:
        """Run."""
        self._called("commit", peer, handover, body)
        return m.CommitReply(state="running", epoch=body.epoch, resumed_at_ns=3)

    async def rejoin(self, peer: HostName, handover: HandoverId, body: m.RejoinRequest) -> m.RejoinReply:
        """Listen."""
        self._called("rejoin", peer, handover, body)
        return m.RejoinReply(state="postcopy-running", address="192.0.2.2", port=49152)

    async def announce(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> None:
        """Announce nothing."""
        self._called("announce", peer, handover, body)

    async def discard(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> None:
        """Do nothing."""
        self._called("discard", peer, handover, body)

    async def status(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> m.PeerStatus:
        """Be loaded."""
        self._called("status", peer, handover, body)
        return _LOADED

    async def verdict(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> m.VerdictReply:
        """Be open."""
        self._called("verdict", peer, handover, body)
        return m.VerdictReply(verdict="open")

    async def claim(self, peer: HostName, name: GuestName, body: m.ClaimRequest) -> m.ClaimReply:
        """Return a fixed claim."""
        self._called("claim", peer, name, body)
        return m.ClaimReply(epoch=None)

    async def beats(self, peer: HostName, handover: HandoverId, body: m.BeatsRequest) -> m.BeatsReply:
        """Return two beats."""
        self._called("beats", peer, handover, body)
        return m.BeatsReply(stamps_ns=(body.start_ns, body.end_ns))

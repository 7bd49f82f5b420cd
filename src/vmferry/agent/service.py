"""What the agent does when asked: each route's method, thin over the conductor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import structlog

from vmferry import __version__
from vmferry.agent.beats import BeatBook
from vmferry.agent.checking import Checking
from vmferry.agent.claims import Claims
from vmferry.agent.console import QemuConsole
from vmferry.agent.devices import HostDevices
from vmferry.agent.host_facts import HostView
from vmferry.agent.links import Links
from vmferry.agent.log_keeper import LogKeeper
from vmferry.agent.measuring import Measuring
from vmferry.agent.peer_client import check_protocol
from vmferry.agent.probing import Probing
from vmferry.agent.recovery import Recovery
from vmferry.agent.stalls import Stalls
from vmferry.agent.traces import TraceStore
from vmferry.agent.views import guest_view, handover_view, past_events, saved_view
from vmferry.api import device_models as d
from vmferry.api import models as m
from vmferry.conductor.guest_devices import GuestDevices
from vmferry.conductor.guests import Guests
from vmferry.conductor.handovers import Handovers, Postcopy
from vmferry.conductor.plan import Asked, Choice, all_blockers, left_out_text
from vmferry.conductor.saving import GuestSaving
from vmferry.core.capabilities import Compression, Encryption, StreamWish, Transport
from vmferry.core.convergence import DEFAULT
from vmferry.core.errors import BadInput, Blocked, Denied, NotFound, VmferryError
from vmferry.core.handover.states import Side
from vmferry.core.host import GuestProbe, HostFacts
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.core.pci import PciAddress
from vmferry.core.progress import ProgressEvent
from vmferry.ports.peer import ReserveRequest
from vmferry.ports.store import HandoverRow
from vmferry.ports.stream import StreamWays

_log = structlog.get_logger("vmferry.agent")
_COMMIT_LIMIT_S = 8.0
#: Longer than any commit between two hosts that live; less than what service managers allow (packaging: 20 s).
_SETTLE_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Service:
    """Implements service_port.AgentService.

    Args:
        guests: this host's guests.
        handovers: this host's hand-overs.
        host_view: what this host offers.
        checking: checks and probes.
        recovery: what `recover` does.
        beat_book: this host's beats.
        known_hosts: names in the fleet document.
        stalls: asks guests for their stalls.
        measuring: what this host measures of its guests' moves.
        claims: whether another host owns a guest by now.
        traces: what policies saw and ordered.
        log_keeper: bounds what guests print.
        saving: guests that go into files, or come out of them.
        ways: how streams travel that the agents connect.
        probing: measures links.
        links: what is known of them.
        devices: this host's PCI devices.
        guest_devices: those that its guests have.
    """

    guests: Guests
    handovers: Handovers
    host_view: HostView
    checking: Checking
    recovery: Recovery
    beat_book: BeatBook
    known_hosts: Callable[[], Sequence[str]]
    stalls: Stalls
    measuring: Measuring
    claims: Claims
    traces: TraceStore
    log_keeper: LogKeeper
    saving: GuestSaving
    ways: StreamWays
    probing: Probing
    links: Links
    devices: HostDevices
    guest_devices: GuestDevices

    async def start(self) -> None:
        """Re-adopt guests and take up unfinished hand-overs."""
        self.log_keeper.start()
        self.ways.door.start()
        await self.recovery.start()
        self.guest_devices.recover()
        try:
            facts = await self.host_view.facts()
            if facts.disk_leases is not None and (problem := facts.disk_leases.problem) is not None:
                _log.warning("no guest can have leases of its images yet", what=problem.what, fix=problem.fix)
        except VmferryError as error:
            _log.error(
                "QEMU cannot be used; guests that run go on, none can start or arrive", what=error.what, fix=error.fix
            )

    async def settle(self) -> None:
        """Wait until no guest stands still for a hand-over, or is between two owners."""
        if late := await self.handovers.settle(_SETTLE_LIMIT_S):
            _log.warning("the agent ends in the middle of hand-overs; the next one takes them up", handovers=late)

    async def close(self) -> None:
        """Let go of everything: guests live on."""
        await self.log_keeper.close()
        await self.probing.close()
        await self.ways.close()
        await self.handovers.close()
        await self.saving.close()
        await self.measuring.close()
        await self.guest_devices.close()
        await self.devices.close()
        await self.guests.close()
        await self.beat_book.close_all()

    # -- operators ------------------------------------------------------------------------------------------------

    async def host(self) -> HostFacts:
        """Return what this host offers."""
        return await self.host_view.facts()

    async def list_pci(self) -> d.PciList:
        """Return this host's PCI devices."""
        return await self.devices.list()

    async def set_functions(self, body: d.SetFunctions) -> d.PciView:
        """Have a card make so many virtual functions; raises as `hostdev.set_functions`."""
        return await self.devices.set_functions(body)

    async def set_function(self, body: d.SetFunction) -> d.PciView:
        """Tell a card of one of its virtual functions; raises as `hostdev.set_function`."""
        return await self.devices.set_function(body)

    async def list_guests(self) -> m.GuestList:
        """Return all guests of this host."""
        rows = self.guests.rows()
        return m.GuestList(guests=tuple(await asyncio.gather(*(self._view(row.guest.spec.name) for row in rows))))

    async def show_guest(self, name: GuestName) -> m.GuestView:
        """Return one guest."""
        return await self._view(name)

    async def run_guest(self, body: m.RunGuest) -> m.GuestView:
        """Define a guest and start it; on failure nothing is left."""
        await self.checking.check_new(body.spec)
        await self.guests.run(body.spec)
        return await self._view(body.spec.name)

    async def start_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Start a guest that is stopped."""
        self.guests.row(name)
        await self.claims.check(name)
        await self.guests.start(name)
        return await self._view(name)

    async def stop_guest(self, name: GuestName, body: m.StopGuest) -> m.GuestView:
        """Power a guest off."""
        await self.guests.stop(name, power_down_s=None if body.force else body.time_limit_s)
        return await self._view(name)

    async def pause_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Stop a guest's vCPUs."""
        await self.guests.pause(name)
        return await self._view(name)

    async def resume_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Let a guest's vCPUs run."""
        await self.guests.resume(name)
        return await self._view(name)

    async def attach_devices(self, name: GuestName, body: d.AttachDevices) -> m.GuestView:
        """Give a running guest devices of this host; raises as `GuestDevices.attach`."""
        await self.guest_devices.attach(name, [PciAddress.parse(text) for text in body.devices])
        return await self._view(name)

    async def detach_device(self, name: GuestName, body: d.DetachDevice) -> m.GuestView:
        """Take a device from a running guest; raises as `GuestDevices.detach`."""
        await self.guest_devices.detach(name, PciAddress.parse(body.device), body.time_limit_s)
        return await self._view(name)

    async def remove_guest(self, name: GuestName) -> None:
        """Forget a guest that is stopped."""
        await self.guests.remove(name)

    async def save_guest(self, name: GuestName, body: m.SaveGuest) -> m.SavedView:
        """Write a guest into a file of this host, which owns it from then on."""
        return saved_view(body.path, await self.saving.save(name, body.path))

    async def cancel_save(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Give a save up before its commit."""
        await self.saving.cancel(name)
        return await self._view(name)

    async def restore_guest(self, body: m.RestoreGuest) -> m.GuestView:
        """Have a guest go on here as it was when it was saved."""
        return await self._view(await self.saving.restore(body.path))

    async def open_console(self, name: GuestName) -> QemuConsole:
        """Open a guest's serial console."""
        self.guests.row(name)
        return await QemuConsole.open(self.guests.process(name), name)

    async def check(self, name: GuestName, body: m.CheckRequest) -> m.CheckReply:
        """Return everything that keeps a guest from moving."""
        self._known_host(body.destination)
        destination = HostName(body.destination)
        options = body.options
        postcopy = _postcopy(options) is not None
        stream = _stream(options)
        found = await self.checking.check(
            name, destination, None, postcopy=postcopy, stream=stream, copy_disks=options.copy_disks
        )
        asked = Asked(
            _choice(options),
            self.guests.row(name).guest.spec.memory_bytes,
            options.max_bandwidth,
            options.downtime_limit_ms,
            postcopy=postcopy,
            stream=stream,
        )
        chosen = await self.handovers.foresee(asked, found.qemus)
        left_out = tuple(left_out_text(left) for left in chosen.left_out)
        blockers = found.blockers + await self.handovers.brake_blockers(name, options.throttle)
        blockers = all_blockers(blockers, chosen)
        promised = None if blockers else found.guarantee
        itself = destination == self.links.name
        link = None if itself else await self.links.view(destination, options.max_bandwidth)
        return m.CheckReply(blockers=blockers, guarantee=promised, left_out=left_out, link=link)

    async def migrate(self, name: GuestName, body: m.MigrateRequest) -> m.MigrateReply:
        """Open a hand-over; it goes on after the answer."""
        self._known_host(body.destination)
        await self._must_run(name, HostName(body.destination))
        options = body.options
        handover = await self.handovers.open(
            name,
            HostName(body.destination),
            downtime_limit_ms=options.downtime_limit_ms,
            bandwidth=options.max_bandwidth,
            time_limit_s=options.time_limit_s,
            choice=_choice(options),
            postcopy=_postcopy(options),
            stream=_stream(options),
            copy_disks=options.copy_disks,
        )
        self.probing.give_way()
        return m.MigrateReply(handover=handover)

    async def probe_link(self, body: m.ProbeLink) -> m.LinkView:
        """Measure the link to another host."""
        self._known_host(body.destination)
        destination = HostName(body.destination)
        if destination == self.guests.settings.name:
            raise BadInput(f"Host {destination} has no link to itself", fix="name another host of the fleet")
        await self.probing.measure(destination)
        return await self.links.view(destination)

    async def list_handovers(self) -> m.HandoverList:
        """Return all hand-overs, newest first."""
        return m.HandoverList(handovers=tuple(self._handover_view(row) for row in self.guests.journal.handovers()))

    async def show_handover(self, handover: HandoverId) -> m.HandoverView:
        """Return one hand-over."""
        return self._handover_view(self._row(handover))

    async def watch_handover(self, handover: HandoverId) -> AsyncIterator[ProgressEvent]:
        """Return a hand-over's events from its start; the iterator ends after Finished."""
        row = self._row(handover)
        if row.side != str(Side.SOURCE):
            raise BadInput(
                f"Hand-over {handover} is watched at its source", fix=f"ask the agent of {row.peer}", side="destination"
            )
        source = self.handovers.source(handover)
        if source is not None:
            return source.feed.follow()
        return past_events(row, self.guests.journal, self.guests.settings.name)

    async def trace_handover(self, handover: HandoverId) -> AsyncIterator[dict[str, object]]:
        """Return the lines of a hand-over's trace, as they were stored at its end."""
        row = self._row(handover)
        if row.side != str(Side.SOURCE):
            raise BadInput(
                f"The trace of hand-over {handover} is at its source",
                fix=f"ask the agent of {row.peer}",
                side="destination",
            )
        return await self.traces.read(row.id)

    async def cancel_handover(self, handover: HandoverId, body: m.Nothing) -> m.HandoverView:
        """Give a hand-over up before its commit."""
        await self.handovers.cancel(handover)
        return self._handover_view(self._row(handover))

    async def limit_handover(self, handover: HandoverId, body: m.LimitRequest) -> m.HandoverView:
        """Change what a hand-over's stream may take."""
        await self.handovers.limit(handover, body.max_bandwidth)
        return self._handover_view(self._row(handover))

    async def recover(self, body: m.RecoverRequest) -> m.RecoverReply:
        """Bring journal and reality together."""
        guest = None if body.guest is None else GuestName(body.guest)
        return m.RecoverReply(findings=await self.recovery.findings(guest))

    async def recover_fenced(self, body: m.FencedRequest) -> m.RecoverReply:
        """Take it from a person that a host is off and stays off."""
        findings = await self.recovery.fenced(HostName(body.host))
        self.claims.known_off.add(HostName(body.host))
        return m.RecoverReply(findings=findings)

    # -- other agents ---------------------------------------------------------------------------------------------

    async def hello(self, peer: HostName, body: m.HelloRequest) -> m.HelloReply:
        """Say who this is."""
        protocol = check_protocol(body.protocol, body.agent_version, peer)
        facts = await self.host_view.facts()
        return m.HelloReply(name=facts.name, protocol=protocol, agent_version=__version__, facts=facts)

    async def ping(self, peer: HostName, body: m.Nothing) -> m.PingReply:
        """Return two clock stamps."""
        received = time.monotonic_ns()
        return m.PingReply(received_ns=received, sent_ns=time.monotonic_ns())

    async def probe(self, peer: HostName, body: m.ProbeRequest) -> GuestProbe:
        """Return what a guest would find here; nothing is reserved."""
        return await self.checking.probe(body.guest)

    async def expect_probe(self, peer: HostName, body: m.Nothing) -> m.ProbeOffer:
        """Let a probe of the link in."""
        return self.probing.expect(peer)

    async def probe_result(self, peer: HostName, body: m.ProbeResultRequest) -> m.ProbeResult:
        """Wait until a probe was counted, and return what arrived."""
        return await self.probing.result(peer, body.probe)

    async def reserve(self, peer: HostName, handover: HandoverId, body: m.ReserveRequest) -> m.ReserveReply:
        """Hold everything and start QEMU, listening; on failure nothing is left."""
        if body.source != peer:
            raise Denied(f"Host {peer} asked for a reservation in the name of {body.source}")
        self._of_peer(peer, handover, Side.DESTINATION)
        self.checking.check_arrival(body.guest)
        await asyncio.to_thread(self.checking.check_certificates, body.setup.certificates, body.source)
        request = ReserveRequest(
            handover,
            body.guest,
            body.epoch,
            body.running,
            body.source,
            body.setup,
            body.link,
            body.pipeline,
            body.copies,
            body.migratable,
        )
        self.probing.give_way()
        reply = await self.handovers.arrivals.reserve(request)
        return m.ReserveReply(address=reply.address, port=reply.port, ticket=reply.ticket, disk_port=reply.disk_port)

    async def wait_loaded(self, peer: HostName, handover: HandoverId, body: m.WaitLoadedRequest) -> m.PeerStatus:
        """Wait until everything is loaded, it failed, or the time is over."""
        self._of_peer(peer, handover, Side.DESTINATION)
        status = await self.handovers.arrivals.wait_loaded(handover, body.timeout_ms / 1000)
        return m.PeerStatus(
            state=status.state,
            run_state=status.run_state,
            migration_status=status.migration_status,
            error=status.error,
            qemu_alive=status.qemu_alive,
        )

    async def status(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> m.PeerStatus:
        """Return how this side is."""
        return await self.wait_loaded(peer, handover, m.WaitLoadedRequest(timeout_ms=1))

    async def commit(self, peer: HostName, handover: HandoverId, body: m.CommitRequest) -> m.CommitReply:
        """Take the guest over; repeating it changes nothing."""
        if self._of_peer(peer, handover, Side.DESTINATION) is None:
            raise NotFound(f"Hand-over {handover} was never reserved on host {self.guests.settings.name}")
        reply = await self.handovers.arrivals.commit(handover, body.epoch, _COMMIT_LIMIT_S, running=body.running)
        return m.CommitReply(
            state=reply.state,
            epoch=reply.epoch,
            resumed_at_ns=reply.resumed_at_ns,
            detail=reply.detail,
            parts_ms=dict(reply.parts_ms),
        )

    async def rejoin(self, peer: HostName, handover: HandoverId, body: m.RejoinRequest) -> m.RejoinReply:
        """Listen anew for the rest of a guest, or hear that it will not come."""
        if self._of_peer(peer, handover, Side.DESTINATION) is None:
            raise NotFound(f"Hand-over {handover} was never reserved on host {self.guests.settings.name}")
        reply = await self.handovers.arrivals.rejoin(handover, source_alive=body.source_alive)
        return m.RejoinReply(state=reply.state, address=reply.address, port=reply.port, detail=reply.detail)

    async def announce(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> None:
        """Announce a guest that arrived to the network again."""
        if self._of_peer(peer, handover, Side.DESTINATION) is not None:
            await self.handovers.arrivals.announce(handover)

    async def discard(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> None:
        """Drop the arrival; repeating it changes nothing."""
        if self._of_peer(peer, handover, Side.DESTINATION) is not None:
            self.handovers.arrivals.discard(handover)

    async def verdict(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> m.VerdictReply:
        """Return who owns the guest, from the source's journal."""
        self._of_peer(peer, handover, Side.SOURCE)
        return m.VerdictReply(verdict=self.handovers.verdict(handover).value)

    async def claim(self, peer: HostName, name: GuestName, body: m.ClaimRequest) -> m.ClaimReply:
        """Return the epoch in which this host owns a guest."""
        return m.ClaimReply(epoch=self.claims.claim(name, body.uuid))

    async def beats(self, peer: HostName, handover: HandoverId, body: m.BeatsRequest) -> m.BeatsReply:
        """Return the beats that were stamped here in a window, and the longest stall that the guest itself saw."""
        row = self._of_peer(peer, handover, Side.DESTINATION)
        if row is None:
            raise NotFound(f"Hand-over {handover} was never reserved on host {self.guests.settings.name}")
        stall = await self.stalls.longest(row.guest)
        seen = self.beat_book.seen(row.guest, body.start_ns, body.end_ns)
        return m.BeatsReply(stamps_ns=tuple(seen.stamps_ns), truncated=not seen.complete, in_guest_stall_ms=stall)

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _view(self, name: GuestName) -> m.GuestView:
        return await guest_view(self.guests, name, self.host_view.offer.acceleration_tag, self.guest_devices)

    def _known_host(self, name: str) -> None:
        known = self.known_hosts()
        if name not in known:
            raise NotFound(
                f"Host {name} is not in the fleet; hosts: {', '.join(sorted(known))}", fix="see `vmferry host list`"
            )

    async def _must_run(self, name: GuestName, destination: HostName) -> None:
        """Refuse to move a guest without a process: there is no memory that could be sent, or lost.

        Raises:
            Blocked: it is stopped.
            GuestBusy: it is not certain yet whether it has a process.
        """
        self.guests.row(name)
        if self.guests.process(name) is not None:
            return
        async with self.guests.operation(name, "migrate"):
            found = await self.checking.check(name, destination, "migrate")
        raise Blocked(
            f"Guest {name} cannot move to {destination}; nothing was touched",
            fix="remove what blocks",
            blockers=found.blockers,
        )

    def _row(self, handover: HandoverId) -> HandoverRow:
        journal = self.guests.journal
        row = journal.handover(handover, str(Side.SOURCE)) or journal.handover(handover, str(Side.DESTINATION))
        if row is None:
            raise NotFound(
                f"Hand-over {handover} is not known on host {self.guests.settings.name}",
                fix="take one of `vmferry handover list`",
            )
        return row

    def _handover_view(self, row: HandoverRow) -> m.HandoverView:
        return handover_view(row, self.guests.settings.name, self.handovers.source(row.id))

    def _of_peer(self, peer: HostName, handover: HandoverId, side: Side) -> HandoverRow | None:
        """Return the hand-over's row if there is one; it must be that peer's.

        Raises:
            Denied: it is between this host and another one.
        """
        row = self.guests.journal.handover(handover, str(side))
        if row is not None and row.peer != peer:
            raise Denied(f"Hand-over {handover} is not one with host {peer}")
        return row


def _postcopy(options: m.MigrateOptions) -> Postcopy | None:
    """Return whether post-copy is allowed; who names its round allows it."""
    return Postcopy(options.postcopy_after) if options.postcopy or options.postcopy_after else None


def _stream(options: m.MigrateOptions) -> StreamWish:
    """Return how the stream shall travel.

    Raises:
        BadInput: it is to be encrypted, and by nobody.
    """
    if options.encryption is not None and (options.plain or options.pipeline is not None):
        other = "--plain encrypts nothing" if options.plain else "what goes through a pipeline its commands encrypt"
        raise BadInput(f"--encryption says by what QEMU encrypts, and {other}", fix="leave one of them out")
    link = Transport(options.link or Transport.TCP)
    compression = Compression(options.compression or Compression.NONE)
    encryption = Encryption(options.encryption or Encryption.PSK)
    return StreamWish(link, options.channels, compression, not options.plain, options.pipeline, encryption)


def _choice(options: m.MigrateOptions) -> Choice:
    """Return which policy is asked for, and what it shall reach."""
    policy = options.policy or DEFAULT
    return Choice(policy, options.max_gap_ms, options.deadline_ms, options.at_deadline, options.throttle)

"""What the HTTP server needs of the agent: one async method per route of the table, named as there.

Arguments come in this order: for peer routes the calling host's name (from its certificate), then the parts of the
path, then the body (when the route has one). A method answers with the route's response type or raises a VmferryError,
which becomes the problem body. When a route's time limit passes, the caller is told so, and **the method goes on**:
a hand-over is never cut in the middle by HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from vmferry.api import device_models as d
from vmferry.api import models as m
from vmferry.core.host import GuestProbe, HostFacts
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.pki.names import Identity


class ConsoleLink(Protocol):
    """One open connection to a guest's serial console."""

    async def read(self) -> bytes:
        """Wait for output; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Send input."""

    async def close(self) -> None:
        """Let go of the console. Idempotent."""


class OperatorService(Protocol):
    """What operators may ask."""

    async def host(self) -> HostFacts:
        """Return what this host offers."""

    async def list_pci(self) -> d.PciList:
        """Return the PCI devices of this host."""

    async def set_functions(self, body: d.SetFunctions) -> d.PciView:
        """Have a card make so many virtual functions."""

    async def set_function(self, body: d.SetFunction) -> d.PciView:
        """Tell a card of one of its virtual functions."""

    async def list_guests(self) -> m.GuestList:
        """Return all guests of this host."""

    async def show_guest(self, name: GuestName) -> m.GuestView:
        """Return one guest."""

    async def run_guest(self, body: m.RunGuest) -> m.GuestView:
        """Define a guest and start it; on failure nothing is left."""

    async def start_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Start a guest that is stopped."""

    async def stop_guest(self, name: GuestName, body: m.StopGuest) -> m.GuestView:
        """Power a guest off."""

    async def pause_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Stop a guest's vCPUs."""

    async def resume_guest(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Let a guest's vCPUs run."""

    async def attach_devices(self, name: GuestName, body: d.AttachDevices) -> m.GuestView:
        """Give a running guest devices of this host, all or none."""

    async def detach_device(self, name: GuestName, body: d.DetachDevice) -> m.GuestView:
        """Take a device from a running guest, and give it back to this host."""

    async def remove_guest(self, name: GuestName) -> None:
        """Forget a guest that is stopped."""

    async def save_guest(self, name: GuestName, body: m.SaveGuest) -> m.SavedView:
        """Write a guest into a file of this host, which owns it from then on; on failure it goes on."""

    async def cancel_save(self, name: GuestName, body: m.Nothing) -> m.GuestView:
        """Give a save up before its commit; the guest goes on."""

    async def restore_guest(self, body: m.RestoreGuest) -> m.GuestView:
        """Have a guest go on here as it was when it was saved; on failure the file is as before."""

    async def open_console(self, name: GuestName) -> ConsoleLink:
        """Open a guest's serial console."""

    async def check(self, name: GuestName, body: m.CheckRequest) -> m.CheckReply:
        """Return everything that keeps a guest from moving."""

    async def migrate(self, name: GuestName, body: m.MigrateRequest) -> m.MigrateReply:
        """Open a hand-over; it goes on after the answer."""

    async def probe_link(self, body: m.ProbeLink) -> m.LinkView:
        """Measure the link to another host."""

    async def list_handovers(self) -> m.HandoverList:
        """Return all hand-overs, newest first."""

    async def show_handover(self, handover: HandoverId) -> m.HandoverView:
        """Return one hand-over."""

    async def watch_handover(self, handover: HandoverId) -> AsyncIterator[m.ProgressEvent]:
        """Return a hand-over's events from its start; the iterator ends after Finished."""

    async def trace_handover(self, handover: HandoverId) -> AsyncIterator[dict[str, object]]:
        """Return the lines of a hand-over's trace."""

    async def cancel_handover(self, handover: HandoverId, body: m.Nothing) -> m.HandoverView:
        """Give a hand-over up before its commit."""

    async def limit_handover(self, handover: HandoverId, body: m.LimitRequest) -> m.HandoverView:
        """Change what a hand-over's stream may take, while it is sent."""

    async def recover(self, body: m.RecoverRequest) -> m.RecoverReply:
        """Bring journal and reality together."""

    async def recover_fenced(self, body: m.FencedRequest) -> m.RecoverReply:
        """Take it from a person that a host is off and stays off."""


class PeerService(Protocol):
    """What other agents may ask; `peer` is who asks, proven by its certificate."""

    async def hello(self, peer: HostName, body: m.HelloRequest) -> m.HelloReply:
        """Say who this is; raises Refused when the protocols do not meet."""

    async def ping(self, peer: HostName, body: m.Nothing) -> m.PingReply:
        """Return two clock stamps."""

    async def probe(self, peer: HostName, body: m.ProbeRequest) -> GuestProbe:
        """Return what a guest would find here; nothing is reserved."""

    async def expect_probe(self, peer: HostName, body: m.Nothing) -> m.ProbeOffer:
        """Let a probe of the link in."""

    async def probe_result(self, peer: HostName, body: m.ProbeResultRequest) -> m.ProbeResult:
        """Wait until a probe was counted, and return what arrived."""

    async def reserve(self, peer: HostName, handover: HandoverId, body: m.ReserveRequest) -> m.ReserveReply:
        """Hold everything and start QEMU, listening; on failure nothing is left."""

    async def wait_loaded(self, peer: HostName, handover: HandoverId, body: m.WaitLoadedRequest) -> m.PeerStatus:
        """Wait until everything is loaded, it failed, or the time is over."""

    async def commit(self, peer: HostName, handover: HandoverId, body: m.CommitRequest) -> m.CommitReply:
        """Take the guest over; repeating it changes nothing."""

    async def rejoin(self, peer: HostName, handover: HandoverId, body: m.RejoinRequest) -> m.RejoinReply:
        """Listen anew for the rest of a guest, or hear that it will not come."""

    async def announce(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> None:
        """Announce a guest that arrived to the network again."""

    async def discard(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> None:
        """Drop the arrival; repeating it changes nothing."""

    async def status(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> m.PeerStatus:
        """Return how this side is."""

    async def verdict(self, peer: HostName, handover: HandoverId, body: m.Nothing) -> m.VerdictReply:
        """Return who owns the guest, from the source's journal."""

    async def claim(self, peer: HostName, name: GuestName, body: m.ClaimRequest) -> m.ClaimReply:
        """Return the epoch in which this host owns a guest."""

    async def beats(self, peer: HostName, handover: HandoverId, body: m.BeatsRequest) -> m.BeatsReply:
        """Return the beats that were stamped here in a window."""


class AgentService(OperatorService, PeerService, Protocol):
    """All that an agent does."""

    async def start(self) -> None:
        """Re-adopt guests and take up unfinished hand-overs; called once, before the first request."""

    async def settle(self) -> None:
        """Wait, not for ever, until no guest stands still for a hand-over; requests are answered meanwhile."""

    async def close(self) -> None:
        """Let go of everything: guests live on."""


class FleetService(Protocol):
    """What concerns the fleet itself: membership and certificates."""

    async def hosts(self) -> m.HostList:
        """Return the fleet as this agent knows it."""

    async def membership(self) -> m.MembershipBody:
        """Return the newest signed fleet document."""

    async def accept_membership(self, body: m.MembershipBody) -> None:
        """Take a newer fleet document."""

    async def renew(self, caller: Identity, body: m.RenewRequest) -> m.RenewReply:
        """Sign a new certificate for the caller, where the CA directory is."""

    async def openapi(self) -> dict[str, object]:
        """Return the OpenAPI page."""

"""What requests and replies look like: one type per body, made of the core's own facts where there are some.

Requests refuse keys that they do not know, at every depth: a guest's key that a destination silently ignored would be
another guest. Replies may grow; who reads them ignores what it does not know.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from vmferry.api.bases import Reply, Request
from vmferry.core.bandwidth import MOST_BANDWIDTH
from vmferry.core.capabilities import MOST_CHANNELS, Transport
from vmferry.core.disks import ImageCopy
from vmferry.core.errors import Blocker
from vmferry.core.guest import Acceleration, Desired, FrozenGuest, GuestSpec
from vmferry.core.host import HostFacts
from vmferry.core.ids import NAME_PATTERN, Epoch, GuestName, GuestUuid, HandoverId, HostName, check_name
from vmferry.core.migratable import MigratableDevice
from vmferry.core.progress import (
    DisksCopied,
    Finished,
    Guarantee,
    PolicyBegan,
    PolicyOrdered,
    Progress,
    Report,
    RoundEnded,
    StateEntered,
    Step,
)
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import MigrationSetup, MigrationStatus, RunState
from vmferry.ports.stream import Ticket

#: Agent-to-agent protocol of this version; it also speaks the one before (`OLDEST_PROTOCOL`).
PROTOCOL = 1
OLDEST_PROTOCOL = 1

NameField = Annotated[str, Field(pattern=NAME_PATTERN)]


def _named(spec: GuestSpec) -> GuestSpec:
    """Hold that a guest has a guest's name: it becomes a path."""
    check_name(spec.name)
    return spec


def _frozen_named(guest: FrozenGuest) -> FrozenGuest:
    _named(guest.spec)
    return guest


def _ip(address: str) -> str:
    """Hold that an address is written as IP: it becomes part of an order to QEMU."""
    if "%" in address:
        raise ValueError("an IP address without a zone")
    ipaddress.ip_address(address)
    return address


NamedSpec = Annotated[GuestSpec, AfterValidator(_named)]
NamedGuest = Annotated[FrozenGuest, AfterValidator(_frozen_named)]
IpAddress = Annotated[str, AfterValidator(_ip)]


class Nothing(Request):
    """An empty body; `{}` or no body at all."""


class Problem(Reply):
    """Any error (RFC 9457): the attributes of the error, and the text that is made from them."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    what: str
    owner: str | None = None
    fix: str | None = None
    side: str | None = None
    retry: bool = False
    blockers: tuple[Blocker, ...] | None = None


# Guests


class RunGuest(Request):
    """Define a guest and start it."""

    spec: NamedSpec


class StopGuest(Request):
    """Stop a guest."""

    force: bool = False  #: end QEMU at once instead of asking the guest to power off
    time_limit_s: Annotated[float, Field(gt=0, le=600)] = 60.0  #: how long the guest may take to power off


FilePath = Annotated[str, Field(min_length=2, max_length=3000, pattern=r"^/[^\x00]+$")]


class SaveGuest(Request):
    """Write a guest into a file of its host."""

    path: FilePath


class SavedView(Reply):
    """A guest in a file."""

    path: str
    name: GuestName
    epoch: Epoch  #: in which the file owns it
    running: bool  #: whether it goes on running
    qemu: tuple[int, int, int]  #: that wrote it
    mapped: bool  #: whether only QEMU 9.0 and later reads it
    state_bytes: Bytes
    sha256: str  #: of the state


class RestoreGuest(Request):
    """Have a guest go on out of a file of this host."""

    path: FilePath


class GuestView(Reply):
    """A guest as its agent sees it now."""

    name: GuestName
    uuid: GuestUuid
    host: HostName  #: the agent that answers
    owner: HostName  #: whose vCPUs may run
    epoch: Epoch
    desired: Desired
    run_state: RunState | None  #: None: there is no process
    acceleration: Acceleration
    acceleration_tag: str
    pid: int | None
    busy_with: HandoverId | None
    note: str | None
    spec: GuestSpec
    macs: tuple[str, ...]  #: of its network cards, in the order of the specification; also those that were made
    devices: tuple[str, ...] = ()  #: addresses of the host's devices that are kept for it
    #: of each card that has its virtual function: whether that carries its traffic ("function"), or its standby does;
    #: None: it has not been heard since it was given the function
    carriers: dict[str, str | None] = Field(default_factory=dict)
    #: which of its cards are to have a virtual function and have none, and why: they run on their standbys
    degraded: dict[str, str] = Field(default_factory=dict)


class GuestList(Reply):
    """All guests of a host."""

    guests: tuple[GuestView, ...]


# Migration


class MigrateOptions(Request):
    """How a guest shall move; None lets the agent decide."""

    plain: bool = False  #: do not encrypt the stream
    encryption: Literal["psk", "x509"] | None = None  #: by what QEMU encrypts it (docs/streams.md); None: psk
    downtime_limit_ms: Annotated[Milliseconds | None, Field(gt=0, le=60_000)] = None
    max_bandwidth: Annotated[BytesPerSecond | None, Field(gt=0, le=10**12)] = (
        None  #: bytes/s; None: what the link gives
    )
    time_limit_s: Annotated[float | None, Field(gt=0, le=10**7)] = None  #: give up and stay when pre-copy takes longer
    policy: Annotated[str | None, Field(max_length=100)] = None  #: decides when to switch over; None: the default one
    max_gap_ms: Annotated[Milliseconds | None, Field(gt=0, le=2_000_000)] = (
        None  #: the longest pause that the guest may see
    )
    deadline_ms: Annotated[Milliseconds | None, Field(gt=0, le=10**10)] = (
        None  #: switched over by then, or else it is given up
    )
    at_deadline: Literal["cancel", "switch"] | None = None  #: what then; switch: it is moved, whatever the gap
    throttle: Literal["auto-converge", "40-writes", "any", "none"] | None = (
        None  #: the brake on a guest that writes too fast (docs/policies.md, docs/write-throttle.md)
    )
    postcopy: bool = False  #: post-copy may be used where pre-copy cannot end
    postcopy_after: Annotated[int | None, Field(ge=1, le=1000)] = None  #: begin it when this round begins (1: at once)
    link: Literal["tcp", "fd", "unix", "rdma"] | None = None  #: how the stream travels (docs/streams.md); None: tcp
    channels: Annotated[int | None, Field(ge=1, le=MOST_CHANNELS)] = None  #: None: one, or what the compression needs
    pipeline: NameField | None = None  #: of both hosts' configurations, instead of a link
    copy_disks: bool = False  #: copy the images that the hosts do not share (docs/disks.md)
    compression: Literal["none", "auto", "xbzrle", "zlib", "zstd", "qpl", "uadk", "qatzip"] | None = None  #: None: none


class ProbeLink(Request):
    """Measure the link to another host."""

    destination: NameField


class MeasuredLink(Reply):
    """What the last probe of a link saw."""

    bytes_per_second: BytesPerSecond
    is_least: bool  #: it carries that or more
    round_trip_ms: Milliseconds  #: before the probe; 0: the kernel does not say
    age_s: float
    counts: bool  #: whether moves still reckon with it


class LinkView(Reply):
    """What is known of the link from one host to another."""

    source: HostName
    destination: HostName
    bandwidth: BytesPerSecond | None  #: that a stream can count on; None: nobody knows
    told_by: Literal["asked", "configured", "device", "measured"] | None  #: whose word that is
    limit: BytesPerSecond | None  #: most that a stream may take
    limited_by: Literal["asked", "configured", "device"] | None
    device: str  #: one clause: whose speed it is, or why it tells none
    measured: MeasuredLink | None  #: None: never since the agent began


class CheckRequest(Request):
    """Ask what keeps a guest from moving."""

    destination: NameField
    options: MigrateOptions = MigrateOptions()


class CheckReply(Reply):
    """Every blocker at once, and what is promised when there is none."""

    blockers: tuple[Blocker, ...]
    guarantee: Guarantee | None  #: None when the blockers leave nothing to promise
    left_out: tuple[str, ...] = ()  #: what the policy wishes of the stream and cannot have, each with the reason
    link: LinkView | None = None  #: None: there is none, or an agent that does not tell


class MigrateRequest(Request):
    """Move a guest."""

    destination: NameField
    options: MigrateOptions = MigrateOptions()


class MigrateReply(Reply):
    """The hand-over that was opened; watch it by this id."""

    handover: HandoverId


ProgressEvent = StateEntered | DisksCopied | Progress | RoundEnded | PolicyBegan | PolicyOrdered | Finished


class HandoverView(Reply):
    """A hand-over as one side's agent sees it."""

    handover: HandoverId
    guest: GuestName
    side: Literal["source", "destination"]
    source: HostName
    destination: HostName
    state: str
    step: Step | None
    owner: str | None
    finished: bool  #: the guest is free for the next order; its report may follow a moment later
    created_at: float  #: Unix time
    progress: Progress | None = None
    report: Report | None = None


class HandoverList(Reply):
    """All hand-overs that a host knows, newest first."""

    handovers: tuple[HandoverView, ...]


class LimitRequest(Request):
    """Change what a hand-over's stream may take."""

    max_bandwidth: Annotated[BytesPerSecond | None, Field(gt=0, le=10**12)]  #: bytes/s; None: what the link gives


# Recovery


class RecoverRequest(Request):
    """Look where guests run and bring journal and reality together."""

    guest: NameField | None = None  #: None: all


class FencedRequest(Request):
    """Say, as a person who made sure of it, that a host is off and stays off."""

    host: NameField


class Finding(Reply):
    """What recovery found about one guest, and what it did."""

    guest: GuestName
    handover: HandoverId | None
    found: str  #: one sentence
    done: str  #: one sentence; "nothing" where all was well
    owner: str | None  #: None: not known


class RecoverReply(Reply):
    """All findings."""

    findings: tuple[Finding, ...]


# Fleet


class HostView(Reply):
    """One host of the fleet, from the fleet document."""

    name: HostName
    address: str
    port: int
    authority: bool  #: whether it renews certificates


class HostList(Reply):
    """The fleet as this agent knows it."""

    version: int  #: of the fleet document
    hosts: tuple[HostView, ...]


class MembershipBody(Request):
    """A signed fleet document."""

    document: Annotated[str, Field(max_length=500_000)]
    signature: Annotated[str, Field(max_length=500)]


class RenewRequest(Request):
    """Ask for a new certificate for the identity that asks."""

    request: Annotated[str, Field(max_length=10_000)]  #: certificate request, PEM


class RenewReply(Reply):
    """A new certificate."""

    certificate: str  #: PEM


class EnrolRequest(Request):
    """First half of an enrolment: proves that the operator read the code."""

    secret: Annotated[str, Field(max_length=100)]
    name: NameField


class EnrolReply(Reply):
    """What the agent wants signed."""

    request: str  #: certificate request, PEM
    ca: str | None  #: CA certificate of a CA directory on this host, PEM: tells that this host is the authority
    agent_version: str
    port: int


class EnrolFinish(Request):
    """Second half of an enrolment: the agent is a member from here."""

    secret: Annotated[str, Field(max_length=100)]
    certificate: Annotated[str, Field(max_length=10_000)]
    ca: Annotated[str, Field(max_length=10_000)]
    membership: MembershipBody


# Agent to agent


class HelloRequest(Request):
    """Who asks, and which protocol it speaks."""

    protocol: int
    agent_version: str


class HelloReply(Reply):
    """Who answers; both go on with the lower of the two protocols."""

    name: HostName
    protocol: int
    agent_version: str
    facts: HostFacts


class PingReply(Reply):
    """Two stamps of the answering agent's clock (Unix time), in ns: for the offset between two hosts' clocks."""

    received_ns: int
    sent_ns: int


class ProbeRequest(Request):
    """A guest that may come."""

    guest: NamedGuest


class ReserveRequest(Request):
    """Hold everything that a guest needs and start its QEMU, waiting for the stream.

    Carries the stream's key: never logged, never in an error.
    """

    guest: NamedGuest
    epoch: Epoch  #: of the token that the source holds
    running: bool  #: whether the guest runs there
    source: HostName
    setup: MigrationSetup
    link: Transport = Transport.TCP
    pipeline: NameField | None = None
    copies: Annotated[tuple[ImageCopy, ...], Field(max_length=64)] = ()  #: images that are made there
    migratable: Annotated[tuple[MigratableDevice, ...], Field(max_length=8)] = ()  #: devices whose state comes

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is empty and newer: an agent that does not know it refuses it."""
        written: dict[str, Any] = write(self)
        if not self.migratable:
            del written["migratable"]
        return written


class ReserveReply(Reply):
    """Where the stream goes; the ticket's secret is never logged."""

    address: IpAddress
    port: int
    ticket: Ticket | None = None  #: the agent's stream port takes it; None: QEMU listens at address and port
    disk_port: int | None = None  #: where its QEMU serves the images that are copied


class ProbeOffer(Reply):
    """Where a probe of the link is to connect; the ticket's secret is never logged."""

    probe: Annotated[HandoverId, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]  #: its name, in the ticket and afterwards
    address: IpAddress
    ticket: Ticket


class ProbeResultRequest(Request):
    """Ask what was seen of a probe."""

    probe: Annotated[HandoverId, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ProbeResult(Reply):
    """What arrived of a probe."""

    bytes_per_second: Annotated[BytesPerSecond, Field(gt=0, le=MOST_BANDWIDTH)]
    is_least: bool
    total_bytes: Annotated[Bytes, Field(ge=0)]


class WaitLoadedRequest(Request):
    """Wait until the destination's QEMU has loaded everything, failed, or the time is over."""

    timeout_ms: Annotated[int, Field(gt=0, le=60_000)]


class PeerStatus(Reply):
    """How the destination's side of a hand-over is now."""

    state: str  #: of the destination's machine
    run_state: RunState | None
    migration_status: MigrationStatus | None
    error: str | None = None
    qemu_alive: bool


class CommitRequest(Request):
    """The source has released the guest; the destination owns it in `epoch`."""

    epoch: Epoch
    running: bool  #: whether to start the vCPUs


class CommitReply(Reply):
    """What the destination made of it."""

    state: str  #: of the destination's machine: where the token led, or a state on the way there
    epoch: Epoch
    resumed_at_ns: int | None = None  #: the destination's clock at RESUME
    detail: str | None = None
    parts_ms: dict[str, float] = Field(default_factory=dict)  #: where the destination's share of the commit went


class RejoinRequest(Request):
    """The stream of a post-copy is broken at the source: listen anew."""

    source_alive: bool  #: False: the source's QEMU is dead, and what is missing now will never come


class RejoinReply(Reply):
    """How the destination of a post-copy stands, and where it listens."""

    state: str  #: of the destination's machine
    address: IpAddress | None = None  #: None: it does not listen
    port: int | None = None
    detail: str | None = None


class VerdictReply(Reply):
    """Who owns the guest, as the source's journal has it."""

    verdict: Literal["open", "aborted", "released", "unknown"]
    epoch: Epoch | None = None


class ClaimRequest(Request):
    """Ask whether this host owns a guest: a name alone may be another guest's by now."""

    uuid: GuestUuid


class ClaimReply(Reply):
    """The epoch in which the answering host owns the guest; None: it does not."""

    epoch: Epoch | None


class BeatsRequest(Request):
    """Ask for the beats that were stamped in a window of the answering host's CLOCK_MONOTONIC."""

    start_ns: int
    end_ns: int


class BeatsReply(Reply):
    """What was seen of an arrived guest: stamps of its beats, in ns, and what it says of its stalls."""

    stamps_ns: tuple[int, ...]
    truncated: bool = False  #: there were more: than one reply carries, or than this host could take
    in_guest_stall_ms: float | None = None  #: the longest since its meter was reset; None: it did not say

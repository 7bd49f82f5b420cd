"""The one table of all routes: the agent's handlers and the OpenAPI page are both made from it and cannot differ."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from vmferry.api import device_models as d
from vmferry.api import models as m
from vmferry.api.bases import Request
from vmferry.core.host import GuestProbe, HostFacts


class Access(enum.StrEnum):
    """Who may use a route."""

    READ = "read"  #: operators of either role
    OPERATE = "operate"  #: operators with the role operate
    PEER = "peer"  #: enrolled hosts
    MEMBER = "member"  #: every member of the fleet


class Shape(enum.StrEnum):
    """What kind of answer a route gives."""

    JSON = "json"  #: one JSON body, or none
    LINES = "lines"  #: JSON lines until the end
    SOCKET = "socket"  #: a WebSocket


@dataclass(frozen=True, slots=True)
class Route:
    """One route."""

    method: str
    path: str  #: {name} parts are arguments of the handler, in this order
    access: Access
    handler: str  #: method of AgentService, or of FleetService
    summary: str
    request: type[Request] | None = None
    response: Any = None  #: a type; None: no body (204)
    status: int = 200
    shape: Shape = Shape.JSON
    time_limit_s: float = 30.0
    fleet: bool = False  #: handled by FleetService


_GUEST = "/v1/guests/{name}"
_HANDOVER = "/v1/handovers/{handover}"
_PEER = "/peer/v1/handovers/{handover}"
_R, _O, _P, _M = Access.READ, Access.OPERATE, Access.PEER, Access.MEMBER

#: Starting QEMU, waiting for a guest to power off: minutes, not seconds.
_SLOW_S = 660.0

OPERATOR_ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/host", _R, "host", "What this host offers", response=HostFacts),
    Route("GET", "/v1/pci", _R, "list_pci", "The PCI devices of this host", response=d.PciList),
    Route(
        *("POST", "/v1/pci/functions", _O, "set_functions", "How many virtual functions a card has"),
        request=d.SetFunctions,
        response=d.PciView,
        time_limit_s=120.0,
    ),
    Route(
        *("POST", "/v1/pci/function", _O, "set_function", "What a card is told of a virtual function"),
        request=d.SetFunction,
        response=d.PciView,
    ),
    Route("GET", "/v1/guests", _R, "list_guests", "All guests of this host", response=m.GuestList),
    Route("GET", _GUEST, _R, "show_guest", "One guest", response=m.GuestView),
    Route(
        *("POST", "/v1/guests", _O, "run_guest", "Define a guest and start it", m.RunGuest, m.GuestView),
        status=201,
        time_limit_s=_SLOW_S,
    ),
    Route(
        *("POST", f"{_GUEST}/start", _O, "start_guest", "Start a guest that is stopped", m.Nothing, m.GuestView),
        time_limit_s=_SLOW_S,
    ),
    Route(
        *("POST", f"{_GUEST}/stop", _O, "stop_guest", "Power a guest off", m.StopGuest, m.GuestView),
        time_limit_s=_SLOW_S,
    ),
    Route("POST", f"{_GUEST}/pause", _O, "pause_guest", "Stop a guest's vCPUs", m.Nothing, m.GuestView),
    Route("POST", f"{_GUEST}/resume", _O, "resume_guest", "Let a guest's vCPUs run", m.Nothing, m.GuestView),
    Route(
        *("POST", f"{_GUEST}/save", _O, "save_guest", "Write a guest into a file", m.SaveGuest, m.SavedView),
        time_limit_s=_SLOW_S,
    ),
    Route(
        *("POST", f"{_GUEST}/cancel-save", _O, "cancel_save", "Give a save up before its commit", m.Nothing),
        response=m.GuestView,
        time_limit_s=120.0,
    ),
    Route(
        *("POST", "/v1/restore", _O, "restore_guest", "Have a guest go on out of a file"),
        request=m.RestoreGuest,
        response=m.GuestView,
        status=201,
        time_limit_s=_SLOW_S,
    ),
    Route(
        *("POST", f"{_GUEST}/attach", _O, "attach_devices", "Give a running guest devices of its host"),
        request=d.AttachDevices,
        response=m.GuestView,
        time_limit_s=_SLOW_S,
    ),
    Route(
        *("POST", f"{_GUEST}/detach", _O, "detach_device", "Take a device from a running guest"),
        request=d.DetachDevice,
        response=m.GuestView,
        time_limit_s=_SLOW_S,
    ),
    Route("DELETE", _GUEST, _O, "remove_guest", "Forget a guest that is stopped; its disks stay", status=204),
    Route(
        *("GET", f"{_GUEST}/console", _O, "open_console", "The guest's serial console, bytes both ways"),
        status=101,
        shape=Shape.SOCKET,
    ),
    Route(
        *("POST", f"{_GUEST}/check", _O, "check", "Everything that keeps a guest from moving"),
        request=m.CheckRequest,
        response=m.CheckReply,
        time_limit_s=120.0,
    ),
    Route(
        *("POST", f"{_GUEST}/migrate", _O, "migrate", "Move a guest; answers when the hand-over is open"),
        request=m.MigrateRequest,
        response=m.MigrateReply,
        status=202,
    ),
    Route(
        *("POST", "/v1/links/probe", _O, "probe_link", "Measure the link to another host", m.ProbeLink, m.LinkView),
        time_limit_s=60.0,
    ),
    Route("GET", "/v1/handovers", _R, "list_handovers", "All hand-overs, newest first", response=m.HandoverList),
    Route("GET", _HANDOVER, _R, "show_handover", "One hand-over", response=m.HandoverView),
    Route(
        *("GET", f"{_HANDOVER}/watch", _R, "watch_handover", "A hand-over's progress, from its start to its end"),
        response=m.ProgressEvent,
        shape=Shape.LINES,
    ),
    Route(
        *("GET", f"{_HANDOVER}/trace", _R, "trace_handover", "What the policy of a hand-over saw and ordered"),
        response=dict[str, object],
        shape=Shape.LINES,
    ),
    Route(
        *("POST", f"{_HANDOVER}/cancel", _O, "cancel_handover", "Give a hand-over up before its commit"),
        request=m.Nothing,
        response=m.HandoverView,
        time_limit_s=120.0,
    ),
    Route(
        *("POST", f"{_HANDOVER}/bandwidth", _O, "limit_handover", "Change what a hand-over's stream may take"),
        request=m.LimitRequest,
        response=m.HandoverView,
        time_limit_s=120.0,
    ),
    Route(
        *("POST", "/v1/recover", _O, "recover", "Bring journal and reality together", m.RecoverRequest),
        response=m.RecoverReply,
        time_limit_s=300.0,
    ),
    Route(
        *("POST", "/v1/recover/fenced", _O, "recover_fenced", "Say that a host is off and stays off"),
        request=m.FencedRequest,
        response=m.RecoverReply,
        time_limit_s=300.0,
    ),
)

FLEET_ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/hosts", _R, "hosts", "The fleet as this agent knows it", response=m.HostList, fleet=True),
    Route(
        *("GET", "/v1/membership", _M, "membership", "The newest signed fleet document"),
        response=m.MembershipBody,
        fleet=True,
    ),
    Route(
        *("PUT", "/v1/membership", _O, "accept_membership", "Bring a newer fleet document", m.MembershipBody),
        status=204,
        fleet=True,
    ),
    Route(
        *("POST", "/v1/ca/renew", _M, "renew", "A new certificate for who asks", m.RenewRequest, m.RenewReply),
        fleet=True,
    ),
    Route("GET", "/v1/openapi.json", _R, "openapi", "This page", response=dict[str, object], fleet=True),
)

PEER_ROUTES: tuple[Route, ...] = (
    Route("POST", "/peer/v1/hello", _P, "hello", "Who are you", m.HelloRequest, m.HelloReply, time_limit_s=60.0),
    Route("POST", "/peer/v1/ping", _P, "ping", "Two clock stamps", m.Nothing, m.PingReply, time_limit_s=5.0),
    Route(
        *("POST", "/peer/v1/probe", _P, "probe", "What a guest would find here", m.ProbeRequest, GuestProbe),
        time_limit_s=120.0,
    ),
    Route("POST", "/peer/v1/links/probe", _P, "expect_probe", "Let a probe of the link in", m.Nothing, m.ProbeOffer),
    Route(
        *("POST", "/peer/v1/links/probe/result", _P, "probe_result", "What arrived of a probe"),
        request=m.ProbeResultRequest,
        response=m.ProbeResult,
    ),
    Route(
        *("POST", f"{_PEER}/reserve", _P, "reserve", "Hold everything and start QEMU for an arrival"),
        request=m.ReserveRequest,
        response=m.ReserveReply,
        time_limit_s=120.0,
    ),
    Route(
        *("POST", f"{_PEER}/wait-loaded", _P, "wait_loaded", "Wait until everything is loaded"),
        request=m.WaitLoadedRequest,
        response=m.PeerStatus,
        time_limit_s=65.0,
    ),
    Route("POST", f"{_PEER}/commit", _P, "commit", "The guest is yours", m.CommitRequest, m.CommitReply),
    Route("POST", f"{_PEER}/rejoin", _P, "rejoin", "A post-copy's stream broke", m.RejoinRequest, m.RejoinReply),
    Route("POST", f"{_PEER}/announce", _P, "announce", "Announce the guest again", m.Nothing, status=204),
    Route("POST", f"{_PEER}/discard", _P, "discard", "Drop the arrival", m.Nothing, status=204, time_limit_s=60.0),
    Route("POST", f"{_PEER}/status", _P, "status", "How is your side", m.Nothing, m.PeerStatus),
    Route("POST", f"{_PEER}/verdict", _P, "verdict", "Who owns the guest", m.Nothing, m.VerdictReply),
    Route(
        *("POST", "/peer/v1/guests/{name}/claim", _P, "claim", "In which epoch this host owns a guest"),
        request=m.ClaimRequest,
        response=m.ClaimReply,
    ),
    Route("POST", f"{_PEER}/beats", _P, "beats", "Beats that you stamped", m.BeatsRequest, m.BeatsReply),
)

ROUTES: tuple[Route, ...] = OPERATOR_ROUTES + FLEET_ROUTES + PEER_ROUTES

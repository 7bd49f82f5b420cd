"""Joins everything: the only place where the floors meet. Built once per agent, when it is a member of a fleet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from vmferry.agent.beats import BeatBook
from vmferry.agent.checking import Checking
from vmferry.agent.claims import Claims
from vmferry.agent.config import AgentConfig, SanlockConfig
from vmferry.agent.devices import HostDevices
from vmferry.agent.host_facts import HostView, Offer, port_is_free
from vmferry.agent.links import Links
from vmferry.agent.log_keeper import LogKeeper
from vmferry.agent.measuring import Measuring
from vmferry.agent.peer_client import PeerClient
from vmferry.agent.peers import RemotePeer
from vmferry.agent.probing import Probing, Surrounding
from vmferry.agent.recovery import Recovery
from vmferry.agent.service import Service
from vmferry.agent.stalls import Stalls
from vmferry.agent.traces import TraceStore
from vmferry.agent.write_throttle import GuestThrottle
from vmferry.api.models import PROTOCOL
from vmferry.conductor.around import Checked, Surroundings
from vmferry.conductor.guest_devices import GuestDevices
from vmferry.conductor.guests import Guests, HostSettings
from vmferry.conductor.handovers import Handovers
from vmferry.conductor.hold import holder
from vmferry.conductor.link import link_bandwidth
from vmferry.conductor.rows import Request
from vmferry.conductor.runner import no_hold
from vmferry.conductor.saving import GuestSaving, SavingCalls
from vmferry.core.handover.states import AnyState
from vmferry.core.host import QemuFacts
from vmferry.core.ids import GuestName, HostName
from vmferry.disks.files import LocalDiskFiles
from vmferry.disks.sanlock.daemon import Daemon
from vmferry.disks.sanlock.leases import SanlockLeases, Settings
from vmferry.hostdev import BridgeStandbys, DeviceLender, Netlink, Sysfs
from vmferry.links.door import StreamDoor
from vmferry.links.pipeline import CommandPipelines, Pipeline
from vmferry.links.relay import LocalRelays
from vmferry.links.state_file import GuestStateFiles
from vmferry.measure.compressing import PageCompressing
from vmferry.measure.learned import learned_port
from vmferry.pki.stream_directory import StreamDirectory
from vmferry.ports.disk_leases import DiskLeases, NoDiskLeases
from vmferry.ports.disks import nodes_of
from vmferry.ports.peer import Peer
from vmferry.ports.stream import StreamWays
from vmferry.qemu.acceleration import decide
from vmferry.qemu.binary import QemuBinaryConfig
from vmferry.qemu.credentials import no_certificates
from vmferry.qemu.hypervisor import QemuHypervisor
from vmferry.qemu.image_dirs import image_dirs
from vmferry.qemu.image_locks import why_locked
from vmferry.store.sqlite import SqliteJournal

_log = structlog.get_logger("vmferry.agent")


@dataclass(frozen=True, slots=True)
class Membership:
    """What the agent knows of its fleet, looked up at each call since it changes.

    Args:
        name: this host's name.
        address: where others reach this agent; also where streams arrive unless the configuration says otherwise.
        client: the open client to another host's agent; raises NotFound for one that is not in the fleet.
        host_address: a host's address.
        hosts: names of all hosts.
    """

    name: HostName
    address: str
    client: Callable[[HostName], PeerClient]
    host_address: Callable[[HostName], str]
    hosts: Callable[[], Sequence[str]]


async def build(config: AgentConfig, fleet: Membership) -> Service:
    """Return the agent's service, not started yet.

    Raises:
        BadInput: QEMU is missing.
        Broken: the state directory cannot be used.
    """
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    config.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    journal = await asyncio.to_thread(SqliteJournal, config.state_dir / "journal.sqlite")
    binary = QemuBinaryConfig(config.qemu.argv, config.qemu.env).resolved()
    verdict = await decide(binary, config.state_dir, override=config.qemu.acceleration)
    images = image_dirs(config.image_dirs, config.own_dirs)
    tls_dir = config.migration.tls_dir
    certificates = None if tls_dir is None else StreamDirectory(tls_dir, fleet.name)
    hypervisor = QemuHypervisor(
        binary,
        verdict.acceleration,
        state_dir=config.state_dir,
        images=images,
        certificates=no_certificates if certificates is None else certificates.files,
    )
    first_uid, last_uid = config.qemu.uids
    uids = None if QemuHypervisor.runs_as(first_uid) is None else range(first_uid, last_uid + 1)
    beats = BeatBook()
    leases = _disk_leases(config.sanlock)
    guests = Guests(
        HostSettings(fleet.name, config.run_dir, uids, config.state_dir / "tpm"), journal, hypervisor, beats, leases
    )
    first, last = config.migration.ports
    listen = config.migration.address or await _ip_of(fleet.address)
    configured = config.migration.pipelines
    offer = Offer(
        fleet.name,
        listen,
        PROTOCOL,
        verdict.acceleration,
        verdict.reason,
        verdict.tag,
        range(first, last + 1),
        config.memory_reserve,
        config.bridges,
        None if uids is None else uids.start,
        {name: each.encrypts for name, each in configured.items()},
        None if certificates is None else certificates.look,
        leases.facts,
    )
    host_view = HostView(offer, journal, hypervisor)
    ways = StreamWays(
        StreamDoor(config.migration.address or config.listen, config.migration.stream_port),
        CommandPipelines({name: Pipeline(each.send, each.receive) for name, each in configured.items()}),
        LocalRelays(),
    )

    def peer(host: HostName) -> Peer:
        return RemotePeer(host, fleet.client)

    stalls = Stalls(guests)
    throttle = GuestThrottle(guests)
    measuring = Measuring(fleet.name, journal, beats, stalls, verdict.tag)
    traces = TraceStore(config.state_dir / "traces")

    def moving() -> Sequence[GuestName]:
        return handovers.moving()

    probing = Probing(ways.door, Surrounding(fleet.client, fleet.host_address, listen, moving))
    links = Links(
        fleet.name,
        config.migration.max_bandwidth,
        lambda host: link_bandwidth(fleet.host_address(host)),
        probing.measured,
    )
    sysfs, cards = Sysfs(), Netlink()
    lender = DeviceLender(sysfs, cards)
    guest_devices = GuestDevices(guests, lender, config.cards, BridgeStandbys(learned_port))
    checking = Checking(guests, host_view, hypervisor, peer, images.why_not, guest_devices, certificates)
    around = Surroundings(
        peer=peer,
        check=_check(checking),
        opened=measuring.opened,
        passed=measuring.passed,
        leaving=measuring.leaving,
        report=measuring.report,
        link_bandwidth=links.limit,
        link_measured=links.bandwidth,
        link_device=links.device,
        free_memory=host_view.free_memory,
        listen_address=listen,
        ports=offer.ports,
        port_is_free=port_is_free,
        hold=_hold(),
        throttle=throttle,
        ways=ways,
        compressing=PageCompressing(),
        disk_files=LocalDiskFiles(images.why_not, why_locked),
        devices=guest_devices,
        keep_trace=traces.keep,
    )
    handovers = Handovers(guests, around)
    saving = GuestSaving(guests, GuestStateFiles(images.why_not), SavingCalls(_qemu(host_view), checking.check_saved))
    recovery = Recovery(guests, handovers, saving)
    claims = Claims(fleet.name, journal, fleet.client)
    log_keeper = LogKeeper(config.run_dir / "guests")
    return Service(
        guests,
        handovers,
        host_view,
        checking,
        recovery,
        beats,
        fleet.hosts,
        stalls,
        measuring,
        claims,
        traces,
        log_keeper,
        saving,
        ways,
        probing,
        links,
        HostDevices(sysfs, cards, lender, journal.device_claims),
        guest_devices,
    )


def _disk_leases(config: SanlockConfig | None) -> DiskLeases:
    if config is None:
        return NoDiskLeases()
    directories = tuple(str(each) for each in config.image_dirs)
    settings = Settings(config.lockspace, config.host_id, config.dir, directories)
    return SanlockLeases(settings, Daemon(config.socket))


def _qemu(host_view: HostView) -> Callable[[], Awaitable[QemuFacts]]:
    async def qemu() -> QemuFacts:
        return (await host_view.facts()).qemu

    return qemu


async def _ip_of(address: str) -> str:
    """Return the IP address that QEMU would listen on for a name; sources are told that one.

    A name that cannot be looked up now stays: nothing arrives here, and all else works.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        _log.warning("own address cannot be looked up; no guest can arrive", address=address, error=str(error))
        return address
    return str(found[0][4][0])


def _check(checking: Checking) -> Callable[[Request], Awaitable[Checked]]:
    async def check(request: Request) -> Checked:
        found = await checking.check(
            request.guest,
            request.destination,
            f"hand-over {request.handover}",
            postcopy=request.postcopy,
            stream=request.stream,
            copy_disks=request.copy_disks,
        )
        copies = nodes_of(found.copies)
        return Checked(found.blockers, found.guarantee, found.qemus, copies, found.certificates, found.migratable)

    return check


def _hold() -> Callable[[AnyState], Awaitable[object] | None]:
    return holder() or no_hold

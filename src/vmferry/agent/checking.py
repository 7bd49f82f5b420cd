"""Collects the facts for the checks: at the source about guest and destination, at the destination about a guest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from vmferry.agent.files import WhyNot, complaints, guest_files, shared_variables
from vmferry.agent.host_facts import HostView
from vmferry.agent.spec_rules import spec_complaints
from vmferry.conductor.guest_devices import GuestDevices
from vmferry.conductor.guests import Guests
from vmferry.core.capabilities import DEFAULT_STREAM, StreamWish
from vmferry.core.checks import (
    Case,
    find_blockers,
    guarantee,
    have_watchdogs,
    images_to_copy,
    images_with_leases,
)
from vmferry.core.device_claims import addresses_of
from vmferry.core.disks import Image, written_images
from vmferry.core.errors import BadInput, Blocker, Refused, VmferryError
from vmferry.core.guest import FrozenGuest, GuestSpec, IoPath, NetworkKind
from vmferry.core.host import GuestProbe, GuestRuntime, HostFacts, QemuFacts
from vmferry.core.ids import GuestName, GuestUuid, HostName
from vmferry.core.migratable import MigratableDevice
from vmferry.core.progress import Guarantee
from vmferry.core.saved import SavedGuest
from vmferry.core.units import format_bytes
from vmferry.pki.stream_directory import StreamDirectory
from vmferry.pki.stream_rules import Use
from vmferry.ports.hypervisor import Certificates, GuestProcess, Hypervisor
from vmferry.ports.peer import Peer
from vmferry.qemu import tpm
from vmferry.qemu.vhost_net import why_no_vhost


def certificates_of(source: HostFacts, destination: HostFacts) -> Certificates | None:
    """Return by which certificates two hosts know each other; None: one of them has none (a blocker says so)."""
    client, server = source.certificates, destination.certificates
    if client is None or server is None:
        return None
    return Certificates(client.client, client.client_name, server.server, server.server_name)


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found."""

    blockers: tuple[Blocker, ...]
    guarantee: Guarantee | None  #: None when the blockers leave nothing to promise
    qemus: tuple[QemuFacts, QemuFacts]  #: what QEMU can do here and there
    copies: tuple[Image, ...] = ()  #: what is to be copied
    certificates: Certificates | None = None  #: by which the stream is encrypted, if it is to be
    migratable: tuple[MigratableDevice, ...] = ()  #: devices that go with the guest


@dataclass(frozen=True, slots=True)
class Checking:
    """Checks and probes.

    Args:
        guests: this host's guests.
        host_view: what this host offers.
        hypervisor: asked about CPUs.
        peer: another host's agent, by name.
        why_not: why guests may not be given a file of this host.
        devices: this host's devices, which its guests have.
        certificates: this host's, for streams; None: it has none.
    """

    guests: Guests
    host_view: HostView
    hypervisor: Hypervisor
    peer: Callable[[HostName], Peer]
    why_not: WhyNot
    devices: GuestDevices
    certificates: StreamDirectory | None = None

    async def check(
        self,
        name: GuestName,
        destination: HostName,
        own_operation: str | None,
        *,
        postcopy: bool = False,
        stream: StreamWish = DEFAULT_STREAM,
        copy_disks: bool = False,
    ) -> Found:
        """Return every blocker for a guest and a destination.

        Args:
            name: a guest of this host.
            destination: another host of the fleet.
            own_operation: the operation on whose behalf this is asked, and which therefore does not make it busy.
            postcopy: whether post-copy is to be allowed.
            stream: how it is to travel.
            copy_disks: whether images that the hosts do not share may be copied.
        """
        row = self.guests.row(name)
        runtime, here, (there, probe) = await asyncio.gather(
            self._runtime(row.guest, own_operation, copy_disks=copy_disks),
            self.host_view.facts(),
            self._ask(destination, row.guest),
        )
        distrusted = await asyncio.to_thread(self._distrusted, there) if stream.by_certificates else ()
        case = Case(row.guest, runtime, here, there, probe, postcopy, stream, copy_disks, distrusted)
        blockers, copies = find_blockers(case), images_to_copy(case)
        copied = [image.path for image in copies]
        promised = None
        if not blockers:
            leased, watchdogs = images_with_leases(case), have_watchdogs(case)
            promised = guarantee(
                row.guest, runtime, probe, postcopy=postcopy, copied=copied, leased=leased, watchdogs=watchdogs
            )
        certificates = certificates_of(here, there) if stream.by_certificates else None
        return Found(blockers, promised, (here.qemu, there.qemu), copies, certificates, case.migratable)

    def _distrusted(self, there: HostFacts) -> tuple[Blocker, ...]:
        """Return why the destination's certificate is not believed here; nothing where there is none to judge or by."""
        told, here = there.certificates, self.certificates
        if told is None or here is None or not told.server:
            return ()
        return here.distrust(told.server, there.name, Use.SERVER)

    async def _ask(self, destination: HostName, guest: FrozenGuest) -> tuple[HostFacts, GuestProbe]:
        if destination == self.host_view.offer.name:
            return await self.host_view.facts(), await self.probe(guest)
        peer = self.peer(destination)
        return await asyncio.gather(peer.hello(), peer.probe(guest))

    async def _runtime(self, guest: FrozenGuest, own_operation: str | None, *, copy_disks: bool) -> GuestRuntime:
        name = guest.spec.name
        busy = self.guests.busy_with(name)
        process = self.guests.process(name)
        run_state = "stopped"
        reasons: tuple[str, ...] = ()
        not_mirrored: tuple[tuple[str, str], ...] = ()
        if process is not None:
            run_state = str(await process.query_run_state())
            reasons = (await process.query_migration()).blocked_reasons
            not_mirrored = await _not_mirrored(guest, process) if copy_disks else ()
        files = await asyncio.to_thread(guest_files, guest, self.why_not)
        lost_tpm = process is not None and process.has_lost_tpm
        busy = None if busy == own_operation else busy
        unleased = await self.guests.leases.unleased(name)
        by_hand = [claim for claim in self.devices.of(name) if claim.wanted is None]
        attached = addresses_of(name, by_hand)
        plugged = await self.devices.plugged(name)
        functions = tuple(str(claim.address) for claim in plugged)
        migratable = await self.devices.migratable(plugged, reasons)
        return GuestRuntime(
            run_state, busy, reasons, files, not_mirrored, lost_tpm, attached, unleased, functions, migratable
        )

    async def probe(self, guest: FrozenGuest) -> GuestProbe:
        """Return what a guest would find here; nothing is reserved.

        Raises:
            BadInput: no agent makes such a guest.
        """
        if wrong := spec_complaints(guest.spec):
            raise BadInput(f"Guest {guest.spec.name!r} cannot come to any host: {'; '.join(wrong)[:600]}")
        missing, error = await self._cpu(guest)
        rows = self.guests.journal.guests()
        return GuestProbe(
            files=await asyncio.to_thread(guest_files, guest, self.why_not),
            names_taken=frozenset(row.guest.spec.name for row in rows),
            macs_taken=frozenset(mac for row in rows for mac in row.guest.macs),
            uuids_taken=frozenset(row.guest.uuid for row in rows),
            cpu_missing_features=missing,
            cpu_error=error,
            without_devices=await self.devices.why_not(guest),
            offers=await self.devices.offers(guest),
        )

    async def _cpu(self, guest: FrozenGuest) -> tuple[tuple[str, ...], str | None]:
        try:
            return tuple(await self.hypervisor.probe_cpu(guest)), None
        except VmferryError as error:
            return (), error.what

    async def check_new(self, spec: GuestSpec) -> None:
        """Refuse a new guest that this host cannot run, all reasons at once, before anything is touched.

        Raises:
            BadInput: words that no guest file may have, files that are not there or may not be used, firmware variables
                of another guest, bridges that do not exist, MACs or a UUID that are taken, more memory than is free.
        """
        if wrong := spec_complaints(spec):
            raise BadInput(
                f"Guest {spec.name!r} cannot run on any host: {'; '.join(wrong)}; nothing was touched",
                fix="correct the request; docs/guest-file.md says what each key may be",
            )
        if told := [*self._same_uuid(spec.uuid), *await self._what_is_wrong(spec)]:
            raise BadInput(
                f"Guest {spec.name} cannot run on {self.host_view.offer.name}: {'; '.join(told)}; nothing was touched",
                fix="correct the guest file, bring the files to the host (guests may use those below its image_dirs),"
                " or choose another host",
            )

    async def check_saved(self, saved: SavedGuest) -> None:
        """Refuse a guest out of a file that this host cannot run, all reasons at once, before anything is touched.

        Raises:
            BadInput: what `check_new` refuses; another CPU, machine type or acceleration than this host has, other boot
                files, addresses that are taken, a state that QEMU here cannot read.
        """
        guest, here = saved.guest, await self.host_view.facts()
        told = [*spec_complaints(guest.spec)] or await self._what_is_wrong(guest.spec)
        missing, error = await self._cpu(guest)
        told += [f"its CPU needs {', '.join(missing)}"] if missing else [error] if error else []
        if guest.machine not in here.qemu.machines:
            told.append(f"QEMU here does not know machine type {guest.machine}")
        if guest.acceleration is not here.acceleration:
            told.append(f"it runs under {guest.acceleration}, this host has {here.acceleration}")
        if saved.mapped and "mapped-ram" not in here.qemu.capabilities:
            told.append("its pages are mapped, which QEMU reads from 9.0 on")
        rows = self.guests.journal.guests()
        told += [f"MAC {mac} is guest {r.guest.spec.name}'s" for r in rows for mac in guest.macs if mac in r.guest.macs]
        told += self._same_uuid(guest.uuid)
        told += await asyncio.to_thread(self._other_boot_files, guest)
        if told:
            raise BadInput(
                f"Guest {guest.spec.name} cannot be restored on {self.host_view.offer.name}: {'; '.join(told)};"
                " nothing was touched",
                fix="bring what is missing to the host, or choose another host",
            )

    def _same_uuid(self, uuid: GuestUuid | None) -> list[str]:
        """Return whose UUID it is here: two guests of one UUID could never be on one host."""
        rows = self.guests.journal.guests()
        return [f"its UUID is guest {row.guest.spec.name}'s" for row in rows if row.guest.uuid == uuid]

    def _other_boot_files(self, guest: FrozenGuest) -> list[str]:
        """Return which boot files differ from those that the guest was started with."""
        expected = dict(guest.boot_hashes)
        facts = [file for file in guest_files(guest, self.why_not) if file.path in expected and file.exists]
        return [
            f"{file.path} is another file than it was started with"
            for file in facts
            if file.sha256 != expected[file.path]
        ]

    async def _what_is_wrong(self, spec: GuestSpec) -> list[str]:
        """Return why this host cannot run a guest: files, firmware variables, network, memory."""
        told = await asyncio.to_thread(complaints, spec, self.why_not)
        told += [*self._network(spec), *await self._memory(spec)]
        if spec.tpm is not None and await asyncio.to_thread(tpm.query_version) is None:
            told.append("it has a TPM, and there is no swtpm here that emulates one")
        others = [row.guest.spec for row in self.guests.journal.guests()]
        return told + await asyncio.to_thread(shared_variables, spec, others)

    def check_arrival(self, guest: FrozenGuest) -> None:
        """Refuse an arrival for which this host's own rules leave no place, whatever its source made of them.

        Raises:
            Refused: it is on a bridge that does not exist here or is not given to guests.
        """
        if told := self._bridges(guest.spec):
            raise Refused(
                f"Guest {guest.spec.name} cannot come to {self.host_view.offer.name}: {'; '.join(told)}",
                side="destination",
            )

    def check_certificates(self, told: Certificates | None, source: HostName) -> None:
        """Refuse an arrival by certificates that this host does not believe, or does not have.

        Raises:
            Refused: the source's is not good here, or this host's is not (any more).
        """
        if told is None:
            return
        if self.certificates is None:
            name = self.host_view.offer.name
            raise Refused(f"Host {name} has no certificates for streams", side="destination")
        self.certificates.check_arrival(told, source)

    def _bridges(self, spec: GuestSpec) -> list[str]:
        have = self.host_view.bridges()
        return [
            f"network card {index} is on bridge {nic.bridge}, which this host does not have or give to guests"
            f" (it has {', '.join(have) or 'none'})"
            for index, nic in enumerate(spec.nics)
            if nic.network is NetworkKind.BRIDGE and nic.bridge not in have
        ]

    def _network(self, spec: GuestSpec) -> list[str]:
        told = self._bridges(spec)
        if any(nic.front_end is IoPath.VHOST for nic in spec.nics) and (why := why_no_vhost()) is not None:
            told.append(why)
        taken = {mac: row.guest.spec.name for row in self.guests.journal.guests() for mac in row.guest.macs}
        told += self.devices.why_not_run(spec)
        return told + [f"MAC {nic.mac} is guest {taken[nic.mac]}'s" for nic in spec.nics if nic.mac in taken]

    async def _memory(self, spec: GuestSpec) -> list[str]:
        free = (await self.host_view.facts()).memory_free_bytes
        if free >= spec.memory_bytes:
            return []
        return [f"it needs {format_bytes(spec.memory_bytes)} of memory, {format_bytes(free)} is free"]


async def _not_mirrored(guest: FrozenGuest, process: GuestProcess) -> tuple[tuple[str, str], ...]:
    """Return the images that no mirror carries over, and why."""
    found = []
    for image in written_images(guest.spec):
        try:
            await process.mirrors.size_of(image.node)
        except Refused as error:
            found.append((image.path, error.what))
    return tuple(found)

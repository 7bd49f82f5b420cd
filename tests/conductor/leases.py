"""A lock manager in memory, stricter than sanlock: no guest may be let run without the leases of its images."""

from __future__ import annotations

from tests.conductor.fakes import WatchedLink

from vmferry.core.disk_leases import DiskLeaseFacts
from vmferry.core.disks import written_images
from vmferry.core.errors import Broken, Refused
from vmferry.core.guest import FrozenGuest, GuestSpec
from vmferry.ports.hypervisor import HostResources
from vmferry.testing.fake_qemu import FakeQemu

#: Who has a lease that no process of these two hosts has.
STRANGER = 0
_TAKING, _LATER = "taking", "later"


class LeasedLink(WatchedLink):
    """A link whose guests have leases; a process that dies gives its own back."""

    def __init__(self) -> None:
        super().__init__()
        self.lessees: dict[str, int] = {}  #: image -> process, or STRANGER
        self.forgotten: set[int] = set()  #: processes of which their lock manager knows nothing any more

    def lessee(self, path: str) -> int | None:
        """Return the process that has an image's lease now."""
        pid = self.lessees.get(path)
        if pid is None or pid == STRANGER or self.processes[pid].alive:
            return pid
        del self.lessees[path]
        return None

    def lease(self, paths: list[str], pid: int) -> str | None:
        """Give a process the leases of all images, or none; returns the one that another has."""
        taken = next((path for path in paths if self.lessee(path) not in (None, pid)), None)
        if taken is None:
            self.lessees |= dict.fromkeys(paths, pid)
        return taken

    def spawn(self, guest: FrozenGuest, resources: HostResources, boot_id: str, *, incoming: bool) -> FakeQemu:
        paths = [image.path for image in written_images(guest.spec)]
        taking = resources.start_through[:1] == (_TAKING,)
        if taking and any(self.lessee(path) is not None for path in paths):
            raise Broken("sanlock refused a lease of its disks (error -243)")
        qemu = super().spawn(guest, resources, boot_id, incoming=incoming)
        if taking:
            self.lease(paths, qemu.record.pid)
        return qemu

    def take_locks(self, qemu: FakeQemu) -> None:
        super().take_locks(qemu)
        pid = qemu.record.pid
        started = pid in self.processes and bool(qemu.resources.start_through) and pid not in self.forgotten
        missing = [path for path in qemu.writable_images() if self.lessee(path) != qemu.record.pid]
        if started and missing:
            raise AssertionError(f"{qemu.record} is let run without the lease of {missing}")


class FakeLeases:
    """One host's lock manager.

    Args:
        link: what the hosts share.
    """

    def __init__(self, link: LeasedLink) -> None:
        self._link = link
        self.is_down = False  #: it answers nothing

    async def starting(self, spec: GuestSpec, *, taking: bool) -> tuple[str, ...]:
        self._check_up()
        return (_TAKING if taking else _LATER,) if written_images(spec) else ()

    async def why_not(self, spec: GuestSpec) -> str | None:
        paths = [image.path for image in written_images(spec)]
        taken = [path for path in paths if self._link.lessee(path) is not None]
        return f"image {taken[0]} is leased by host id 3" if taken and not self.is_down else None

    async def why_refused(self, spec: GuestSpec, words: str) -> str | None:
        return await self.why_not(spec) if "sanlock refused" in words else None

    async def take(self, spec: GuestSpec, pid: int) -> None:
        self._check_up()
        if not await self.is_registered(pid):
            raise Refused(f"QEMU of guest {spec.name} was not started with leases")
        if (taken := self._link.lease([image.path for image in written_images(spec)], pid)) is not None:
            raise Refused(f"image {taken} is leased by host id 3", retry=True)

    async def is_registered(self, pid: int) -> bool:
        self._check_up()
        return bool(self._link.processes[pid].resources.start_through) and pid not in self._link.forgotten

    async def give(self, pid: int) -> None:
        self._check_up()
        self._link.lessees = {path: one for path, one in self._link.lessees.items() if one != pid}

    async def missing(self, spec: GuestSpec, pid: int) -> tuple[str, ...]:
        self._check_up()
        return tuple(image.path for image in written_images(spec) if self._link.lessee(image.path) != pid)

    async def facts(self) -> DiskLeaseFacts | None:
        raise NotImplementedError

    def _check_up(self) -> None:
        if self.is_down:
            raise Broken("sanlock's daemon does not answer")

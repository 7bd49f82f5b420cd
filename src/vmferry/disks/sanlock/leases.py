"""Leases of sanlock for the images of this host's guests: the implementation of `ports.disk_leases.DiskLeases`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vmferry.core.disk_leases import DiskLeaseFacts, leased_images, plain_path
from vmferry.core.errors import Blocker, Broken, Refused, VmferryError
from vmferry.core.guest import GuestSpec
from vmferry.disks.sanlock import files, wire
from vmferry.disks.sanlock.daemon import Daemon
from vmferry.disks.sanlock.wire import Lease, Life, Refusal

_T = TypeVar("_T")

UNREADY = "disk.lease-unready"
#: How the program says that it did not get a lease.
_REFUSED = "sanlock refused a lease"
_LOOK = "look at its storage and its log: `sanlock client log_dump`"
_PROGRAM = Path(__file__).with_name("begin_registered.py")
#: Storage that hangs: sanlock gives its own I/O up after some multiples of 10 s.
_STORAGE_S = 60.0
#: Another order for the same process is over soon, or the process is.
_BUSY_AGAIN_S = 0.05
_BUSY_TIMES = 40
#: After its last sign of life a host has 8 I/O time-outs until its guests are killed, and so long until it is reset.
_FAIL_FACTOR = 8
_RESET_S = 60
_GONE = frozenset({Life.FREE, Life.DEAD})
_OWNED = frozenset(
    {Refusal.OWNER_ALIVE, Refusal.OWNED, Refusal.OTHER, Refusal.OWNER_SILENT, Refusal.NOT_YET, Refusal.ALREADY}
)


#: Half of a SHA-256 in hex: sanlock takes names of 48 characters.
_NAME_LENGTH = 32


def lease_name(path: str) -> str:
    """Return the name of an image's lease; equal on all hosts that name the image alike."""
    return hashlib.sha256(plain_path(path).encode()).hexdigest()[:_NAME_LENGTH]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the agent's file says about leases."""

    lockspace: str
    host_id: int
    directory: Path  #: of the lockspace's file and of the leases, on storage that all its hosts mount
    image_dirs: tuple[str, ...]  #: images below these have leases

    @property
    def lockspace_file(self) -> Path:
        """Return where the lockspace lies."""
        return self.directory / "lockspace"


class SanlockLeases:
    """This host's.

    Args:
        settings: lockspace and directories.
        daemon: sanlock's.
    """

    def __init__(self, settings: Settings, daemon: Daemon) -> None:
        self._settings = settings
        self._daemon = daemon
        self._looking: asyncio.Future[bool] | None = None

    async def starting(self, spec: GuestSpec, *, taking: bool) -> tuple[str, ...]:
        """Return the program that registers and then becomes QEMU; makes leases that were never needed before."""
        images = leased_images(spec, self._settings.image_dirs)
        if not images:
            return ()
        if (problem := await self._problem()) is not None:
            raise Refused(problem.what, fix=problem.fix)
        leases = [await self._made(path) for path in images]
        requests = [("the registration", wire.register())]
        if taking:
            requests += [("a lease of its disks", wire.acquire(some, spec.name, None)) for some in _by_request(leases)]
        requests.append(("to close the registration", wire.restrict()))
        told = ",".join(f"{label}={zlib.compress(message).hex()}" for label, message in requests)
        return (sys.executable, "-I", "-S", str(_PROGRAM), str(self._daemon.where), told)

    async def why_not(self, spec: GuestSpec) -> str | None:
        """Return which lease is another host's, and how it is with that host."""
        try:
            hosts = {host.host_id: host for host in await self._hosts()}
            for path in leased_images(spec, self._settings.image_dirs):
                result, body = await self._daemon.ask(wire.owners(self._lease(path)), _STORAGE_S)
                for owner in wire.parse_owners(body) if result >= 0 else ():
                    seen = hosts.get(owner.host_id)
                    if seen is None or (seen.generation == owner.generation and seen.life not in _GONE):
                        return self._owned(path, owner, seen)
        except VmferryError:
            return None
        return None

    async def why_refused(self, spec: GuestSpec, words: str) -> str | None:
        """Look who has a lease, if that is what the program says."""
        if _REFUSED not in words:
            return None
        return await self.why_not(spec) or "a lease of its disks was another's until a moment ago"

    def _owned(self, path: str, owner: wire.Host, seen: wire.Host | None) -> str:
        who = f"image {path} is leased by host id {owner.host_id} of lockspace {self._settings.lockspace}"
        if owner.host_id == self._settings.host_id:
            return f"{who}, which is this host: another process has it"
        if seen is None or seen.life == Life.UNKNOWN:
            return f"{who}, which this host has not watched for long enough to say more"
        if seen.life == Life.LIVE:
            return f"{who}, which is alive"
        after_s = _FAIL_FACTOR * seen.io_timeout_s + _RESET_S
        return f"{who}, which is silent: the lease can be taken {after_s} s after its last sign of life"

    async def take(self, spec: GuestSpec, pid: int) -> None:
        """Take what the process does not have yet; what this call took is given back when it cannot have all."""
        missing = await self.missing(spec, pid)
        leases = [await self._made(path) for path in missing]
        taken: list[str] = []
        for some in _by_request(leases):
            result, _ = await self._ask_about(pid, wire.acquire(some, spec.name, pid))
            if result < 0:
                with contextlib.suppress(VmferryError):
                    await self._release(pid, taken)
                raise await self._refusal(spec, result)
            taken += [lease.name for lease in some]

    async def is_registered(self, pid: int) -> bool:
        """Ask the daemon."""
        return await self._held(pid) is not None

    async def give(self, pid: int) -> None:
        """Give back whatever the process has in this lockspace."""
        await self._release(pid, sorted(await self._held(pid) or ()))

    async def _release(self, pid: int, names: Sequence[str]) -> None:
        for some in _by_request(names):
            result, _ = await self._ask_about(pid, wire.release(self._settings.lockspace, some, pid))
            if result < 0 and result not in (Refusal.NOT_REGISTERED, Refusal.HAS_ENDED):
                raise Broken(f"sanlock could not give back leases of process {pid} (error {result})", fix=_LOOK)

    async def missing(self, spec: GuestSpec, pid: int) -> tuple[str, ...]:
        """Ask the daemon which the process has."""
        images = leased_images(spec, self._settings.image_dirs)
        if not images:
            return ()
        held = await self._held(pid) or frozenset()
        return tuple(path for path in images if lease_name(path) not in held)

    async def facts(self) -> DiskLeaseFacts | None:
        """Look now."""
        settings, watchdog = self._settings, False
        alive: tuple[tuple[int, int], ...] = ()
        try:
            problem = await self._problem()
            watchdog = wire.has_watchdog(await self._daemon.ask_status())
            if problem is None:
                alive = tuple((host.host_id, host.generation) for host in await self._hosts() if host.life == Life.LIVE)
        except VmferryError as error:
            problem = Blocker(UNREADY, error.what, error.fix or _LOOK)
        return DiskLeaseFacts(settings.lockspace, settings.host_id, settings.image_dirs, watchdog, alive, problem)

    async def _problem(self) -> Blocker | None:
        """Return why there are no leases now, and begin to join the lockspace where that helps.

        Raises:
            Broken, TimedOut: the daemon does not answer.
        """
        settings, where = self._settings, str(self._settings.lockspace_file)
        asked = (settings.lockspace, settings.host_id, where)
        result, _ = await self._daemon.ask(wire.inquire_lockspace(*asked))
        if result == 0:
            return None
        if await self._is_not_made():
            return Blocker(
                UNREADY,
                f"lockspace {settings.lockspace} does not exist: there is no {where}",
                f"make it once, on one host: `truncate -s 1M {where} && sanlock direct init"
                f" -s {settings.lockspace}:0:{where}:0`",
            )
        await self._daemon.ask(wire.add_lockspace(*asked))
        return Blocker(
            UNREADY,
            f"lockspace {settings.lockspace} is not joined yet with host id {settings.host_id}",
            "try again in half a minute; if it stays so, `sanlock client log_dump` says why: another host may have that"
            " id, or the storage does not answer",
        )

    async def _is_not_made(self) -> bool:
        """Tell whether there certainly is no lockspace; one look at a time, since storage may hang for ever."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(asyncio.to_thread(files.is_there, self._settings.lockspace_file))
        done, _ = await asyncio.wait({self._looking}, timeout=self._daemon.quick_s)
        return bool(done) and not self._looking.result()

    async def _hosts(self) -> tuple[wire.Host, ...]:
        result, body = await self._daemon.ask(wire.hosts(self._settings.lockspace))
        return wire.parse_hosts(body) if result >= 0 else ()

    async def _held(self, pid: int) -> frozenset[str] | None:
        """Return the names of the leases that a process has; None: it is not registered."""
        result, body = await self._ask_about(pid, wire.inquire(pid), self._daemon.quick_s)
        if result in (Refusal.NOT_REGISTERED, Refusal.HAS_ENDED):
            return None
        if result < 0:
            raise Broken(f"sanlock does not say which leases process {pid} has (error {result})", fix=_LOOK)
        return wire.parse_held(body, self._settings.lockspace)

    async def _ask_about(self, pid: int, request: bytes, limit_s: float = _STORAGE_S) -> tuple[int, bytes]:
        """Ask something about a process, again while another order for it is under way."""
        for _ in range(_BUSY_TIMES):
            answer = await self._daemon.ask(request, limit_s)
            if answer[0] != Refusal.BUSY:
                return answer
            await asyncio.sleep(_BUSY_AGAIN_S)
        raise Broken(
            f"sanlock takes no orders for process {pid}: it is being ended, since this host has lost its lockspace",
            fix=_LOOK,
        )

    async def _made(self, path: str) -> Lease:
        """Return an image's lease, which is there now."""
        lease = self._lease(path)
        if not await asyncio.to_thread(files.is_there, Path(lease.path)):
            await self._make(lease)
        return lease

    async def _make(self, lease: Lease) -> None:
        path = Path(lease.path)
        working = await asyncio.to_thread(files.make_working, path)
        try:
            await self._write(Lease(lease.lockspace, lease.name, str(working)))
            await asyncio.to_thread(files.give_name, working, path)
        finally:
            await asyncio.to_thread(working.unlink, missing_ok=True)

    async def _write(self, lease: Lease) -> None:
        result, _ = await self._daemon.ask(wire.write_lease(lease), _STORAGE_S)
        if result < 0:
            raise Broken(
                f"sanlock could not write a new lease in {self._settings.directory} (error {result})",
                fix="give the user of its daemon access to that directory",
            )

    def _lease(self, path: str) -> Lease:
        name = lease_name(path)
        return Lease(self._settings.lockspace, name, str(self._settings.directory / f"{name}.lease"))

    async def _refusal(self, spec: GuestSpec, result: int) -> VmferryError:
        name = spec.name
        if result == Refusal.NOT_REGISTERED:
            return Refused(
                f"QEMU of guest {name} was not started with leases of its disks",
                fix=f"start it anew: `vmferry guest stop {name}`, `vmferry guest start {name}`",
            )
        if result == Refusal.NO_LOCKSPACE:
            problem = await self._problem()
            told = problem.what if problem is not None else f"lockspace {self._settings.lockspace} was left meanwhile"
            return Refused(told, fix="try again when it is joined")
        if result in _OWNED:
            why = await self.why_not(spec)
            return Refused(
                why or f"a disk of guest {name} was leased by another host meanwhile",
                fix="stop the guest that uses it there, or wait until the lease has ended",
                retry=True,
            )
        return Broken(
            f"sanlock could not take the leases of guest {name}'s disks (error {result})",
            fix=_LOOK,
        )


def _by_request(items: Sequence[_T]) -> list[Sequence[_T]]:
    """Return the items in parts that one request can name."""
    return [items[first : first + wire.MOST_LEASES] for first in range(0, len(items), wire.MOST_LEASES)]

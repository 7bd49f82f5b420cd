"""libvirt's daemons through a narrow door: these calls and no others; libvirt's words and exceptions stop here.

libvirt's bindings block, and a daemon that hangs blocks them for ever. So each call runs in a thread of its own with a
time limit. A call that outlived its limit cannot be taken back: its connection counts as lost and takes no more calls,
so that threads do not pile up behind a dead daemon; whoever wants to goes on with a new connection.

What a daemon tells by itself comes by libvirt's event loop (event_loop.py), which also keeps connections alive: a
daemon that is dead, or behind a cut link, is found within seconds, and every call that waits for it fails.

The only module that imports libvirt-python, an optional extra (`vmferry[libvirt]`).

Source: libvirt-python 12.8; https://libvirt.org/html/libvirt-libvirt-domain.html.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import operator
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from vmferry.core.errors import Broken, TimedOut, VmferryError
from vmferry.core.ids import GuestUuid
from vmferry.core.migration import MigrationSample
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.libvirt import event_loop
from vmferry.libvirt.facts import Domain, DomainState, XmlKind
from vmferry.libvirt.faults import translate
from vmferry.libvirt.listening import Listeners
from vmferry.libvirt.moves.happenings import Happening
from vmferry.libvirt.moves.request import Request, Value, mib_per_second
from vmferry.libvirt.moves.samples import sample_of
from vmferry.libvirt.moves.standing import ABSENT, Job, Run, Standing, job_of, reason_of, run_of
from vmferry.libvirt.moves.terms import version_of
from vmferry.libvirt.uri import checked_uri

T = TypeVar("T")

TIME_LIMIT_S: Final = 30.0
#: A daemon that has been silent for so long is asked whether it lives, so many times: dead after 8 s.
_KEEPALIVE_S, _KEEPALIVES = 2, 3
_NO_SUPPORT, _INVALID_ARG, _NO_DOMAIN, _OPERATION_INVALID, _OPERATION_UNSUPPORTED = 3, 8, 42, 55, 84
#: How libvirt refuses to say which job an active domain has -> what it may be: never none.
_UNSAID_JOBS: Final = {_NO_SUPPORT: Job.OTHER, _OPERATION_INVALID: Job.OTHER, _OPERATION_UNSUPPORTED: Job.IN}
_IMITATION = "TEST"  #: the driver that runs in this process
_LOG_FROM = "LIBVIRT_DEBUG"
#: What libvirt takes for no limit (QEMU_DOMAIN_MIG_BANDWIDTH_MAX), in MiB/s.
_NO_LIMIT_MIB = (1 << 63) // (1 << 20) - 1
#: The guest has left, its pages follow: its state at the source, and why (virDomainPausedReason).
_PAUSED, _PAUSED_POSTCOPY = 3, 12
_CPU_INCOMPATIBLE = 91
_FAIL_INCOMPATIBLE = 1  #: a flag: what is missing is told as an error (VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)


class LibvirtConnection:
    """One connection to a daemon. Made by `connect`; whoever has it closes it.

    Every call raises, beside what it says itself:

        Denied: this user may not, or not over a read-only connection.
        Unreachable: the daemon does not answer any more.
        TimedOut: it did not answer in time; the connection is lost.
        Broken: libvirt failed otherwise, or the connection is lost.

    Args:
        uri: for messages.
        connection: libvirt's own object.
        time_limit_s: for each call.
    """

    def __init__(self, uri: str, connection: Any, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._uri = uri
        self._connection = connection
        self._time_limit_s = time_limit_s
        self._is_lost = False
        self._is_closed = False
        self._listeners = Listeners(connection)

    @classmethod
    async def connect(
        cls, uri: str, *, read_only: bool = False, time_limit_s: float = TIME_LIMIT_S
    ) -> LibvirtConnection:
        """Connect to a daemon; nothing is asked at the terminal, and on failure nothing is left open.

        Args:
            uri: one that `uri.checked_uri` lets through.
            read_only: ask for no more than reading; enough for everything but `MIGRATABLE` and `domain_capabilities`.
            time_limit_s: for this and for each later call.

        Raises:
            BadInput: the URI is none that is used here.
            Denied: this user may not, its key or certificate is missing, or the host's key is unknown.
            Unreachable: nobody answers there.
            TimedOut: it did not answer in time.
            Broken: libvirt-python is not installed, or libvirt failed otherwise.
        """
        address, libvirt = checked_uri(uri), _load()
        opener = libvirt.openReadOnly if read_only else libvirt.open
        what = f"libvirt at {uri} cannot be reached"
        event_loop.ensure_running(libvirt)
        connection = await _in_thread(lambda: _kept_alive(opener(address)), what, time_limit_s, _close)
        return cls(uri, connection, time_limit_s=time_limit_s)

    async def anew(self, *, time_limit_s: float = TIME_LIMIT_S) -> LibvirtConnection:
        """Connect to the same daemon once more: whoever has lost this one goes on with that. Raises as `connect`."""
        return await self.connect(self._uri, time_limit_s=time_limit_s)

    async def close(self) -> None:
        """Close it. Idempotent; a daemon that does not answer is not waited for."""
        if self._is_closed:
            return
        was_lost, self._is_closed, self._is_lost = self._is_lost, True, True
        if was_lost:  # closing would hang too, and so would the garbage collector
            threading.Thread(target=self._let_go, name="libvirt", daemon=True).start()
            return
        with contextlib.suppress(VmferryError):
            await _in_thread(self._let_go, "", self._time_limit_s)

    def _let_go(self) -> None:
        self._listeners.close(_load())
        _close(self._connection)

    async def domains(self) -> tuple[Domain, ...]:
        """Return every domain that runs or is defined, by name."""
        return await self._call("its domains", lambda: _domains(self._connection))

    async def domain(self, name: str) -> Domain:
        """Return one domain as it is now.

        Raises:
            NotFound: there is none of that name.
        """
        return await self._call(f"domain {name}", lambda: _facts(self._connection.lookupByName(name)))

    async def standing(self, name: str) -> Standing:
        """Return what a domain does here, why, and which job it has; of one that is not there as well."""
        return await self._call(f"state of domain {name}", lambda: _standing(self._connection, name))

    async def domain_xml(self, name: str, kind: XmlKind = XmlKind.LIVE) -> str:
        """Return a domain's XML, without passwords.

        Raises:
            NotFound: there is none of that name.
            Denied: `MIGRATABLE` of a read-only connection.
        """
        what = f"XML of domain {name}"
        return str(await self._call(what, lambda: self._connection.lookupByName(name).XMLDesc(kind.value)))

    async def version(self) -> tuple[int, int, int]:
        """Return which libvirt the daemon is."""
        return version_of(int(await self._call("its version", self._connection.getLibVersion)))

    async def job(self, name: str) -> MigrationSample:
        """Return how a domain's job stands, as a reading of a migration; status `none` when there is none.

        Raises:
            NotFound: there is no domain of that name.
            Refused: this libvirt does not say it, or the domain does not run.
        """
        stats, in_postcopy = await self.job_words(name)
        return sample_of(stats, in_postcopy=in_postcopy)

    async def last_job(self, name: str) -> MigrationSample:
        """Return how a domain's last job ended, at the host where the domain runs; raises as `job` does."""
        return sample_of((await self.job_words(name, over=True))[0])

    async def job_words(self, name: str, *, over: bool = False) -> tuple[dict[str, Any], bool]:
        """Return a job in libvirt's own words, for transcripts, and whether the guest has left by post-copy.

        Raises as `job` does.

        Args:
            name: of the domain.
            over: the last one that ended instead of one that runs.
        """
        flags = _load().VIR_DOMAIN_JOB_STATS_COMPLETED if over else 0
        what = f"{'last ' * over}job of domain {name}"
        return await self._call(what, lambda: _words(self._connection.lookupByName(name), flags))

    async def move(self, name: str, destination: str | LibvirtConnection, request: Request) -> None:
        """Move a domain; returns when libvirt has finished, however long that takes.

        A caller that is cancelled no longer waits; the daemons go on with the move, which `abort` ends.

        Args:
            name: of a domain that runs here.
            destination: its daemon's address as this one's daemon reaches it; or a connection to it, and then this
                process stands between the two daemons.
            request: without blockers; with PEER2PEER for an address, without it for a connection.

        Raises:
            Broken: it failed, in libvirt's words; the domain runs here unless libvirt was finishing. See `domain`.
        """
        libvirt = _load()
        parameters = _typed(request.parameters)
        flags = functools.reduce(operator.or_, (getattr(libvirt, f"VIR_MIGRATE_{flag}") for flag in request.flags), 0)
        direct = destination if isinstance(destination, LibvirtConnection) else None
        where: Any = checked_uri(str(destination)) if direct is None else direct._connection  # noqa: SLF001  # of this class

        def move() -> None:
            domain = self._connection.lookupByName(name)
            (domain.migrateToURI3 if direct is None else domain.migrate3)(where, parameters, flags)

        there = destination if direct is None else direct._uri  # noqa: SLF001  # as above
        await _in_thread(move, f"libvirt at {self._uri}, move of domain {name} to {there}", None)

    @contextlib.asynccontextmanager
    async def listening(self, name: str) -> AsyncIterator[asyncio.Queue[Happening]]:
        """Yield a queue into which the daemon tells what happens to a domain, in turn, until the end of the block.

        Events may come late or, when the daemon restarts, not at all: whoever needs to know asks.

        Raises:
            NotFound: there is no domain of that name.
        """
        heard: asyncio.Queue[Happening] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(happening: Happening) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(heard.put_nowait, happening)

        what = f"events of domain {name}"
        await self._call(what, lambda: self._listeners.add(_load(), name, tell))
        try:
            yield heard
        finally:
            with contextlib.suppress(VmferryError):
                await self._call(what, lambda: self._listeners.remove(_load(), name, tell))

    async def abort(self, name: str) -> None:
        """Give a domain's job up.

        Raises:
            Refused: there is none, or it cannot be given up any more (post-copy).
        """
        await self._order("end of the job", name, lambda domain: domain.abortJob())

    async def set_downtime_limit(self, name: str, limit_ms: Milliseconds) -> None:
        """Let QEMU switch over when the rest takes no longer than this; whole milliseconds, at least 1."""
        limit = max(1, round(limit_ms))
        await self._order("downtime limit", name, lambda domain: domain.migrateSetMaxDowntime(limit, 0))

    async def set_bandwidth(self, name: str, bandwidth: BytesPerSecond | None) -> None:
        """Limit the stream, in steps of 1 MiB/s; None: as much as the link gives."""
        await self._set_max_speed("bandwidth", name, bandwidth, 0)

    async def set_postcopy_bandwidth(self, name: str, bandwidth: BytesPerSecond | None) -> None:
        """Limit what is sent in post-copy beside the pages that the guest waits for; as above (libvirt 5.1)."""
        flag = int(_load().VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY)
        await self._set_max_speed("bandwidth of post-copy", name, bandwidth, flag)

    async def _set_max_speed(self, what: str, name: str, bandwidth: BytesPerSecond | None, flags: int) -> None:
        limit = _NO_LIMIT_MIB if bandwidth is None else mib_per_second(bandwidth)
        await self._order(what, name, lambda domain: domain.migrateSetMaxSpeed(limit, flags))

    async def start_postcopy(self, name: str) -> None:
        """Have the domain started at the destination while its pages follow.

        Raises:
            Refused: there is no move, or it was begun without POSTCOPY.
        """
        await self._order("post-copy", name, lambda domain: domain.migrateStartPostCopy(0))

    async def destroy(self, name: str) -> None:
        """End a domain's process at once; its definition stays."""
        await self._order("end of the process", name, lambda domain: domain.destroy())

    async def undefine(self, name: str) -> None:
        """Forget a domain's definition; its firmware variables and its TPM's state stay."""
        await self._order("definition", name, _undefine)

    async def suspend(self, name: str) -> None:
        """Stop a domain's vCPUs."""
        await self._order("pause", name, lambda domain: domain.suspend())

    async def resume(self, name: str) -> None:
        """Let a domain's vCPUs run."""
        await self._order("resume", name, lambda domain: domain.resume())

    async def _order(self, what: str, name: str, order: Callable[[Any], object]) -> None:
        await self._call(f"{what} of domain {name}", lambda: order(self._connection.lookupByName(name)))

    async def capabilities(self) -> str:
        """Return what the host is and offers, as libvirt's XML."""
        return str(await self._call("capabilities of the host", self._connection.getCapabilities))

    async def domain_capabilities(self, machine: str, acceleration: str, emulator: str | None = None) -> str:
        """Return what an x86_64 domain can have on this host, as libvirt's XML.

        Args:
            machine: machine type.
            acceleration: libvirt's word: kvm or qemu.
            emulator: the program; None: the one that libvirt takes by itself.

        Raises:
            Denied: the connection is read-only.
            Broken: the emulator is not there, or has no such machine.
        """
        what = f"capabilities for {machine} with {acceleration}"
        return str(
            await self._call(
                what, lambda: self._connection.getDomainCapabilities(emulator, "x86_64", machine, acceleration)
            )
        )

    async def compare_cpu(self, cpu: str, machine: str, acceleration: str, emulator: str | None = None) -> str | None:
        """Return why a domain's CPU does not fit this host, in libvirt's words; None when it does.

        Args:
            cpu: the <cpu> element of the domain.
            machine: as in `domain_capabilities`, and so are the others.
            acceleration: see there.
            emulator: see there.

        Raises:
            Denied: the connection is read-only.
            Refused: this libvirt does not compare.
        """
        what = f"CPU for {machine} with {acceleration}"
        args = emulator, "x86_64", machine, acceleration, cpu, _FAIL_INCOMPATIBLE
        return await self._call(what, lambda: _incompatibility(self._connection, args))

    async def networks(self) -> dict[str, bool]:
        """Return libvirt's networks by name, and whether each is active.

        Raises:
            Refused: this daemon has none.
        """
        return await self._call("its networks", lambda: _active(self._connection.listAllNetworks(0)))

    async def pools(self) -> dict[str, bool]:
        """Return the storage pools by name, and whether each is active.

        Raises:
            Refused: this daemon has none.
        """
        return await self._call("its storage pools", lambda: _active(self._connection.listAllStoragePools(0)))

    async def interfaces(self) -> frozenset[str]:
        """Return the host's network interfaces, bridges and VLANs too; one that is part of a bridge may be missing.

        Raises:
            Refused: this daemon does not look after them.
        """
        found = await self._call("its interfaces", lambda: [i.name() for i in self._connection.listAllInterfaces(0)])
        return frozenset(found)

    async def node_devices(self) -> frozenset[str]:
        """Return the host's devices by the names that `virsh nodedev-list` has for them.

        Raises:
            Refused: this daemon does not look after them.
        """
        names = await self._call("its devices", lambda: [d.name() for d in self._connection.listAllDevices(0)])
        return frozenset(names)

    async def call(self, what: str, function: Callable[[Any], T]) -> T:
        """Return what a function does with libvirt's own connection: for calls that have a file of their own.

        Args:
            what: what is asked, for messages.
            function: blocks; it must not keep what it is given.
        """
        return await self._call(what, lambda: function(self._connection))

    async def _call(self, what: str, function: Callable[[], T]) -> T:
        if self._is_lost:
            raise Broken(f"libvirt at {self._uri}, {what}: the connection is closed or lost", fix="connect again")
        try:
            return await _in_thread(function, f"libvirt at {self._uri}, {what}", self._time_limit_s)
        except TimedOut:
            self._is_lost = True
            raise


def _load() -> Any:
    """Return libvirt's bindings, which then print nothing by themselves.

    Raises:
        Broken: they are not installed.
    """
    try:
        with _unlogged():
            import libvirt
    except ImportError as error:
        raise Broken(
            "libvirt-python is not installed, so no libvirt can be asked",
            fix="install it: pip install 'vmferry[libvirt]' (needs libvirt-dev, pkgconf and a C compiler), or give the"
            " XML as a file",
        ) from error
    libvirt.registerErrorHandler(_say_nothing, None)
    return libvirt


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep libvirt's warnings off standard error, where it logs them beside its errors; who asks for a log has it.

    libvirt looks when it is loaded. What it would warn of is in the error that follows.
    """
    asked = _LOG_FROM in os.environ
    os.environ.setdefault(_LOG_FROM, "4")  # errors; those are not logged as long as nobody names an output
    try:
        yield
    finally:
        if not asked:
            os.environ.pop(_LOG_FROM, None)


def _say_nothing(_context: object, _error: object) -> None:
    """Stand in for libvirt's own handler, which prints each error on standard error."""


async def _in_thread(
    function: Callable[[], T], what: str, time_limit_s: float | None, discard: Callable[[T], object] | None = None
) -> T:
    """Return what a blocking function returns, from a thread that nobody waits for longer than allowed.

    The thread is a daemon: one that hangs in libvirt does not keep the process from ending.

    Args:
        function: what is called.
        what: what is asked, for messages.
        time_limit_s: how long it may take; None: as long as it takes.
        discard: what to do with a result that comes when nobody waits for it any more.

    Raises:
        VmferryError: what libvirt's error is here.
        TimedOut: it took longer.
    """
    loop, libvirt_error = asyncio.get_running_loop(), _load().libvirtError
    answer: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: Exception | None) -> None:
        if answer.done():
            if error is None and discard is not None:
                threading.Thread(target=discard, args=(result,), daemon=True).start()
        elif error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # T may be None itself

    def work() -> None:
        result: T | None = None
        error: Exception | None = None
        try:
            result = function()
        except libvirt_error as failed:
            error = translate(failed.get_error_code() or 0, failed.get_error_message() or str(failed), what)
        except ValueError as failed:  # the bindings': a word that is none (a zero byte, no UTF-8), ours or the daemon's
            error = failed if isinstance(failed, VmferryError) else Broken(f"{what}: {failed}")
        except Exception as failed:  # noqa: BLE001  # raised where it is waited for
            error = failed
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=work, name="libvirt", daemon=True).start()
    try:
        async with asyncio.timeout(time_limit_s):
            return await answer
    except TimeoutError as error:
        raise TimedOut(
            f"{what}: no answer within {time_limit_s:g} s", fix="look after libvirtd there, then try again", retry=True
        ) from error


def _close(connection: Any) -> None:
    with contextlib.suppress(_load().libvirtError):
        connection.close()


def _kept_alive(connection: Any) -> Any:
    with contextlib.suppress(_load().libvirtError):  # libvirt's imitation lives in this process
        connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVES)
    return connection


def _domains(connection: Any) -> tuple[Domain, ...]:
    found = []
    for domain in connection.listAllDomains(0):
        try:
            found.append(_facts(domain))
        except _load().libvirtError as error:
            if error.get_error_code() != _NO_DOMAIN:  # one that went in between is none any more
                raise
    return tuple(sorted(found, key=lambda domain: domain.name))


def _active(found: list[Any]) -> dict[str, bool]:
    return {each.name(): bool(each.isActive()) for each in found}


def _incompatibility(connection: Any, args: tuple[str | int | None, ...]) -> str | None:
    try:
        connection.compareHypervisorCPU(*args)
    except _load().libvirtError as error:
        if error.get_error_code() != _CPU_INCOMPATIBLE:
            raise
        return str(error.get_error_message())
    return None


def _typed(parameters: Mapping[str, Value]) -> dict[str, Any]:
    """Return parameters as libvirt's bindings take them: plain words, lists for several."""
    return {
        name: [str(each) for each in value]
        if isinstance(value, (tuple, list))  # JSON, which keeps what was asked for, has no tuples
        else value
        if isinstance(value, int)
        else str(value)
        for name, value in parameters.items()
    }


def _words(domain: Any, flags: int) -> tuple[dict[str, Any], bool]:
    state, reason = domain.state()[:2]
    return domain.jobStats(flags), (state, reason) == (_PAUSED, _PAUSED_POSTCOPY)


def _state(number: int) -> DomainState:
    states = list(DomainState)
    return states[number] if number < len(states) else DomainState.UNKNOWN


def _standing(connection: Any, name: str) -> Standing:
    try:
        domain = connection.lookupByName(name)
        number, reason_number = domain.state()[:2]
        is_persistent = bool(domain.isPersistent())
        state, reason = _state(number), reason_of(_state(number), reason_number)
        run = run_of(state, reason)
        job = Job.NONE if run is Run.OFF else _job(domain)
    except _load().libvirtError as error:
        if error.get_error_code() != _NO_DOMAIN:
            raise
        return ABSENT
    return Standing(run, job, GuestUuid(domain.UUIDString()), is_persistent, f"{state} ({reason})")


def _undefine(domain: Any) -> None:
    """Undefine with as much kept as the daemon knows of: what it does not know of it does not remove either."""
    libvirt = _load()
    nvram, tpm = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM, libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
    for keep in (nvram | tpm, nvram):
        try:
            domain.undefineFlags(keep)
        except libvirt.libvirtError as error:
            if error.get_error_code() != _INVALID_ARG:
                raise
        else:
            return
    domain.undefine()


def _job(domain: Any) -> Job:
    """Return which job an active domain has; none only if libvirt says so, by a type.

    QEMU's driver has no statistics of a domain that arrives, and refuses them by a number that nothing else of this
    call has; its sentence is in the daemon's own language.
    """
    try:
        stats = domain.jobStats()
    except _load().libvirtError as error:
        if error.get_error_code() not in _UNSAID_JOBS:
            raise
        if error.get_error_code() == _NO_SUPPORT and domain.connect().getType() == _IMITATION:
            return Job.NONE  # it moves nothing
        return _UNSAID_JOBS[error.get_error_code()]
    return job_of(int(stats.get("type", 0)), int(stats.get("operation", 0)))


def _facts(domain: Any) -> Domain:
    state = _state(domain.state()[0])
    return Domain(domain.name(), GuestUuid(domain.UUIDString()), state, bool(domain.isPersistent()))

"""Which host has a libvirt domain that is to move, and whether what is there is the guest, or what a move left behind.

A copy that a move has left behind is paused, and counts as active for libvirt: moved on, its old memory would run, and
what tells of the earlier move would be gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmferry.cli.libvirt_hosts import LibvirtHost
from vmferry.cli.libvirt_records import find_record, is_steered
from vmferry.core.errors import BadInput, Blocker, NotFound, VmferryError

if TYPE_CHECKING:
    from vmferry.libvirt.adapter import LibvirtConnection
    from vmferry.libvirt.moves.standing import Standing


@dataclass(frozen=True, slots=True)
class Seen:
    """How a domain stands on every host that answers."""

    source: str  #: the host that it would leave
    standings: Mapping[str, Standing]
    silent: tuple[str, ...] = ()  #: why a host does not answer, a sentence each
    uris: Mapping[str, str] = field(default_factory=dict)  #: of the hosts: one may be known by two names

    @property
    def active(self) -> tuple[str, ...]:
        """Where it has a process, whether that runs or not; each daemon once."""
        found = {self.uris.get(name, name): name for name in reversed(_active(self.standings))}
        return tuple(sorted(found.values()))


@contextlib.asynccontextmanager
async def reaching(
    hosts: Mapping[str, LibvirtHost], guest: str, destination: str
) -> AsyncIterator[tuple[Seen, tuple[LibvirtConnection, LibvirtConnection]]]:
    """Yield what was seen of a domain, and connections to its source and its destination; closed afterwards.

    Raises:
        NotFound: no libvirt host of the list runs it.
        VmferryError: the destination's daemon does not answer.
    """
    from vmferry.libvirt.adapter import LibvirtConnection

    async with contextlib.AsyncExitStack() as stack:
        made: dict[str, LibvirtConnection] = {}
        standings: dict[str, Standing] = {}
        silent: list[str] = []
        for name, host in sorted(hosts.items(), key=lambda pair: pair[0] == destination):
            try:
                made[name] = await LibvirtConnection.connect(host.uri)
                stack.push_async_callback(made[name].close)
                standings[name] = await made[name].standing(guest)
            except VmferryError as error:
                if name == destination:
                    raise
                silent.append(error.what)
        source = find_source(standings, is_complete=not silent)
        if source is None:
            raise NotFound(
                "; ".join([f"no libvirt host runs a domain {guest}", *silent]), fix="see `virsh list` on the hosts"
            )
        uris = {name: host.uri for name, host in hosts.items()}
        yield Seen(source, standings, tuple(silent), uris), (made[source], made[destination])


def find_source(standings: Mapping[str, Standing], *, is_complete: bool) -> str | None:
    """Return the host that a domain would leave: one that runs it before one that only has a process of it.

    One that nobody runs goes on to the checks, which say so beside all else, but not if a silent host may run it.

    Args:
        standings: of each host that answers, the destination last.
        is_complete: every host has answered.
    """
    from vmferry.libvirt.moves.standing import Run

    if active := _active(standings):
        return min(active, key=lambda name: standings[name].run is not Run.RUNS)
    off = [name for name, standing in standings.items() if standing.run is not Run.ABSENT]
    return off[0] if off and is_complete else None


def find_doubts(guest: str, seen: Seen) -> tuple[Blocker, ...]:
    """Return why what is at the source may not be the guest."""
    return (*open_moves(guest), *_left_behind(guest, seen), *_elsewhere(guest, seen))


def open_moves(guest: str) -> Iterator[Blocker]:
    """Yield an earlier move whose end nobody knows. One that somebody steers is told when the guest is to be locked."""
    if is_steered(guest):
        return
    try:
        record = find_record(guest)
    except BadInput as error:
        yield Blocker("domain.move-open", error.what, error.fix or _recover(guest))
        return
    if record is not None:
        yield Blocker(
            "domain.move-open",
            f"an earlier move of {guest} from {record.source} to {record.destination} was not brought to its end: which"
            " of the two has the guest is not known",
            _recover(guest),
        )


def _left_behind(guest: str, seen: Seen) -> Iterator[Blocker]:
    """Yield why the source's process is what a move has left there, or has not finished with."""
    from vmferry.libvirt.moves.standing import Run

    standing = seen.standings[seen.source]
    if standing.run not in (Run.RUNS, Run.PAUSED, Run.OFF, Run.ABSENT):
        yield Blocker(
            "domain.mid-move",
            f"{guest} is {standing.says} on {seen.source}: that is a move's doing, no person's; it may be an old copy"
            " of a guest that runs elsewhere, or lack a part of its memory",
            _recover(guest),
        )


def _elsewhere(guest: str, seen: Seen) -> Iterator[Blocker]:
    """Yield which other host has a process of it, or may have."""
    from vmferry.libvirt.moves.standing import Run

    if len(seen.active) > 1:
        where = ", ".join(f"{name} ({seen.standings[name].says})" for name in seen.active)
        yield Blocker(
            "domain.twice",
            f"{guest} has a process on more than one host: {where}; which of them is the guest is not known",
            f"{_recover(guest)}; where it runs twice, virsh suspend one of them at once",
        )
    elif seen.active and seen.silent and seen.standings[seen.source].run is not Run.RUNS:
        yield Blocker(
            "domain.host-silent",
            f"{guest} does not run on {seen.source}, where it is {seen.standings[seen.source].says}, and may run on a"
            f" host that does not answer: {'; '.join(seen.silent)}",
            "make libvirtd there answer, or take the host from the list if it is gone for good (vmferry host remove)",
        )


def _active(standings: Mapping[str, Standing]) -> tuple[str, ...]:
    from vmferry.libvirt.moves.standing import Run

    return tuple(name for name, standing in standings.items() if standing.run not in (Run.ABSENT, Run.OFF))


def _recover(guest: str) -> str:
    return f"vmferry recover {guest}, which tells where it runs and ends what is half done; then move it"

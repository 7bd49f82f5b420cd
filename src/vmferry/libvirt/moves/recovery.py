"""Finds out what became of a domain's move and ends it: looks at both daemons, does what the table says, looks again.

What is done follows from what two looks, a moment apart, say alike; the acts of one diagnosis are done in turn, and one
that fails ends the recovery with what is known then. Between the second look and the act a person may still do
something else to the domain; nobody else does, since no libvirt acts by itself on what the table acts on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from vmferry.core.errors import VmferryError
from vmferry.libvirt.moves.diagnosis import Act, Deed, Diagnosis, Move, Side, diagnose
from vmferry.libvirt.moves.standing import Standing, silent

#: Between the two looks that must say alike.
_MOMENT_S: Final = 0.3
#: How long libvirt gets to end by itself what it is at: its daemons notice each other's end after 30 s at the most
#: (keepalive_interval and keepalive_count of libvirtd.conf).
PATIENCE_S: Final = 45.0
_LOOK_EVERY_S: Final = 0.5
#: No chain of diagnoses is longer: wait, destroy and resume, undefine.
_MOST_ROUNDS: Final = 8


class DomainHost(Protocol):
    """One daemon, as far as a recovery goes. Each call raises a `VmferryError` when it fails."""

    async def standing(self, name: str) -> Standing:
        """Return how a domain stands there."""

    async def resume(self, name: str) -> None:
        """Let its vCPUs run."""

    async def destroy(self, name: str) -> None:
        """End its process."""

    async def undefine(self, name: str) -> None:
        """Forget its definition."""


@dataclass(frozen=True, slots=True)
class Case:
    """One domain that moved, or was to.

    Args:
        domain: its name.
        source: the host that it was to leave; None: its daemon does not answer, as `silences` says why.
        destination: the other, likewise.
        names: of the two hosts, for people.
        move: what is known of the move.
        silences: why a daemon does not answer.
    """

    domain: str
    source: DomainHost | None
    destination: DomainHost | None
    names: tuple[str, str]
    move: Move
    silences: tuple[str, str] = ("", "")

    def host(self, side: Side) -> DomainHost | None:
        """Return a side's daemon."""
        return self.source if side is Side.SOURCE else self.destination

    def name(self, side: Side) -> str:
        """Return a side's name."""
        return self.names[0 if side is Side.SOURCE else 1]

    async def standings(self) -> tuple[Standing, Standing]:
        """Return how it stands at both; a daemon that does not answer is `SILENT`."""
        return (
            await _standing(self.source, self.domain, self.silences[0]),
            await _standing(self.destination, self.domain, self.silences[1]),
        )


@dataclass(frozen=True, slots=True)
class Recovered:
    """How a recovery ended."""

    diagnosis: Diagnosis  #: the last one
    standings: tuple[Standing, Standing]
    done: tuple[str, ...]  #: a sentence for each act, in turn
    failed: VmferryError | None = None  #: what ended it early


Helper = Callable[[], Awaitable[None]]


async def look(case: Case) -> tuple[Diagnosis, tuple[Standing, Standing]]:
    """Return what became of a move; touches nothing."""
    standings = await case.standings()
    return diagnose(*standings, case.move), standings


async def recover(
    case: Case, *, steer: Helper | None = None, repair: Helper | None = None, patience_s: float = PATIENCE_S
) -> Recovered:
    """Do what may be done until nothing is left to do.

    Args:
        case: the move.
        steer: applies the policy to the job that runs, and returns at its end; None: libvirt moves it unsteered.
        repair: has libvirt resume a post-copy that broke, and returns at its end; None: nobody here can.
        patience_s: how long libvirt gets to end what it is at.
    """
    done: list[str] = []
    deadline = time.monotonic() + patience_s
    found, standings = await look(case)
    for _ in range(_MOST_ROUNDS):
        act = found.acts[0] if found.acts else None
        if act is None:
            return Recovered(found, standings, tuple(done))
        if act.deed is Deed.WAIT or (act.deed is Deed.STEER and steer is None):
            found, standings, ended = await _wait(case, found, deadline)
            if not ended:
                return Recovered(found, standings, tuple(done))
            continue
        if act.deed is Deed.REPAIR and repair is None:
            return Recovered(found, standings, tuple(done))
        await asyncio.sleep(_MOMENT_S)
        again, standings = await look(case)
        if again != found:
            found = again
            continue
        try:
            for one in found.acts:
                await _do(case, one, steer, repair)
                done.append(_told(case, one))
        except VmferryError as error:
            before, (found, standings) = found, await look(case)
            # A move that ended just as somebody began to steer it has no job any more: what it has come to counts.
            if act.deed is not Deed.STEER or found == before:
                return Recovered(found, standings, tuple(done), error)
            continue
        found, standings = await look(case)
    return Recovered(found, standings, tuple(done))


async def _wait(case: Case, found: Diagnosis, deadline: float) -> tuple[Diagnosis, tuple[Standing, Standing], bool]:
    """Wait until something else is to be done; tell whether it came to that in time."""
    while True:
        now, standings = await look(case)
        if now != found:
            return now, standings, True
        if time.monotonic() > deadline:
            return now, standings, False
        await asyncio.sleep(_LOOK_EVERY_S)


async def _do(case: Case, act: Act, steer: Helper | None, repair: Helper | None) -> None:
    host = case.host(act.side)
    if act.deed is Deed.STEER and steer is not None:
        await steer()
    elif act.deed is Deed.REPAIR and repair is not None:
        await repair()
    elif host is not None:
        orders = {Deed.RESUME: host.resume, Deed.DESTROY: host.destroy, Deed.UNDEFINE: host.undefine}
        await orders[act.deed](case.domain)


_DONE = {
    Deed.RESUME: "resumed on {host}",
    Deed.DESTROY: "its process on {host} ended",
    Deed.UNDEFINE: "its definition on {host} removed",
    Deed.STEER: "steered to its end from {host}",
    Deed.REPAIR: "post-copy from {host} resumed",
}


def _told(case: Case, act: Act) -> str:
    return _DONE[act.deed].format(host=case.name(act.side))


async def _standing(host: DomainHost | None, domain: str, silence: str) -> Standing:
    if host is None:
        return silent(silence)
    try:
        return await host.standing(domain)
    except VmferryError as error:
        return silent(error.what)

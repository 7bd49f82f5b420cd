"""Before a guest is started cold: does another host own it by now?

A host that was declared off and comes back still has the token that it had. Its last partner may have claimed the guest
since, one epoch further, on a person's word; two hosts would then start it. So the last partner is asked first, and as
long as it cannot be asked nothing is started: that it does not answer proves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from vmferry.agent.peer_client import PeerClient
from vmferry.core.errors import InDoubt, NotFound, Refused, TimedOut, Unreachable
from vmferry.core.ids import Epoch, GuestName, HostName
from vmferry.ports.store import GuestRow, Journal, Token


@dataclass(frozen=True, slots=True)
class Claims:
    """Asks the last partner of a guest's hand-overs.

    Args:
        here: this host.
        journal: guests and hand-overs.
        client: the open client to another host; raises NotFound for one that is not in the fleet (any more).
        known_off: hosts of which a person said, to this agent, that they are off and stay off.
    """

    here: HostName
    journal: Journal
    client: Callable[[HostName], PeerClient]
    known_off: set[HostName] = field(default_factory=set)

    async def check(self, name: GuestName) -> None:
        """Let a guest of this host be started cold only when nobody else owns it.

        Raises:
            Refused: the last partner owns it in a later epoch; the row here says so from now on.
            InDoubt: the last partner cannot be asked.
        """
        row = self.journal.guest(name)
        partner = self._last_partner(name)
        if row is None or partner is None or partner in self.known_off:
            return
        epoch = await self._ask(partner, row)
        if epoch is None or epoch <= row.token.epoch:
            return
        token = Token(epoch, partner, running=False)
        self.journal.put_guest(dataclasses.replace(row, token=token, note=f"claimed by {partner}"))
        raise Refused(
            f"Guest {name} is {partner}'s since epoch {epoch} (here: epoch {row.token.epoch})",
            owner=partner,
            fix=f"start it there, or move it back: vmferry migrate {name} {self.here}",
        )

    async def _ask(self, partner: HostName, row: GuestRow) -> Epoch | None:
        name = row.guest.spec.name
        try:
            return (await self.client(partner).claim(name, row.guest.uuid)).epoch
        except NotFound:
            return None  # removed from the fleet: its certificate gets nothing, it can claim nothing
        except (Unreachable, TimedOut) as error:
            raise InDoubt(
                f"Guest {name} last moved between {self.here} and {partner}, which does not answer and may own it",
                fix=f"bring {partner} back, or say that it is off for certain: vmferry recover --fenced {partner}",
                retry=True,
            ) from error

    def _last_partner(self, name: GuestName) -> HostName | None:
        return next((row.peer for row in self.journal.handovers() if row.guest == name), None)

    def claim(self, name: GuestName, uuid: str) -> Epoch | None:
        """Return the epoch in which this host owns the guest."""
        row = self.journal.guest(name)
        if row is None or row.guest.uuid != uuid or row.token.owner != self.here:
            return None
        return row.token.epoch

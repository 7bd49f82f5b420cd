"""Before a guest is started cold, its last partner is asked whether it owns it by now."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from vmferry.agent.claims import Claims
from vmferry.api.models import ClaimReply
from vmferry.core.errors import InDoubt, NotFound, Refused, Unreachable
from vmferry.core.ids import Epoch, GuestName, HostName
from vmferry.ports.store import Token

HERE, THERE, WEB = HostName("host-b"), HostName("host-a"), GuestName("web-7")


class Rows:
    """A journal with one guest and its hand-overs."""

    def __init__(self, row: Any, partners: list[HostName]) -> None:
        self.row = row
        self.partners = partners

    def guest(self, name: GuestName) -> Any:
        return self.row if self.row and name == self.row.guest.spec.name else None

    def handovers(self) -> list[Any]:
        return [SimpleNamespace(guest=WEB, peer=peer) for peer in self.partners]

    def put_guest(self, row: Any) -> None:
        self.row = row


@dataclasses.dataclass(frozen=True)
class Row:
    guest: Any
    token: Token
    note: str | None = None


def make(answer: object, *, epoch: int = 4, partners: list[HostName] | None = None) -> tuple[Claims, Rows]:
    """Return claims over one guest here, and its rows."""
    guest = SimpleNamespace(spec=SimpleNamespace(name=WEB), uuid="u-1")
    rows = Rows(Row(guest, Token(Epoch(epoch), HERE, running=True)), [THERE] if partners is None else partners)

    class Client:
        async def claim(self, name: GuestName, uuid: str) -> ClaimReply:
            if isinstance(answer, Exception):
                raise answer
            return ClaimReply(epoch=answer)

    return Claims(HERE, rows, lambda host: Client()), rows  # type: ignore[arg-type, return-value]


async def test_a_guest_claimed_in_a_later_epoch_is_not_started() -> None:
    """A host that was declared off and comes back gives its old token up instead of starting a second copy."""
    claims, rows = make(Epoch(5))
    with pytest.raises(Refused, match="host-a's since epoch 5"):
        await claims.check(WEB)
    assert rows.row.token == Token(Epoch(5), THERE, running=False)


@pytest.mark.parametrize("epoch", [None, 3, 4])
async def test_an_older_claim_or_none_lets_it_start(epoch: int | None) -> None:
    """What the partner had before our epoch is the past."""
    claims, rows = make(epoch)
    before = rows.row
    await claims.check(WEB)
    assert rows.row is before


async def test_a_silent_partner_leaves_it_in_doubt() -> None:
    """That a host does not answer proves nothing: nothing is started."""
    claims, _ = make(Unreachable("host-a does not answer"))
    with pytest.raises(InDoubt, match="recover --fenced host-a"):
        await claims.check(WEB)


async def test_a_persons_word_ends_the_doubt() -> None:
    """A person who made sure that the partner is off decides."""
    claims, _ = make(Unreachable("host-a does not answer"))
    claims.known_off.add(THERE)
    await claims.check(WEB)


async def test_a_removed_partner_and_a_guest_that_never_moved_are_no_doubt() -> None:
    """Who is not in the fleet can claim nothing, and who never moved has no partner."""
    await make(NotFound("no such host"))[0].check(WEB)
    await make(Unreachable("nobody"), partners=[])[0].check(WEB)

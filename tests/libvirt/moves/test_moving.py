"""What a move orders of libvirt in post-copy."""

from __future__ import annotations

import pytest

from vmferry.core.capabilities import StreamWish
from vmferry.core.rounds.following import QUIET
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.moving import LibvirtMove
from vmferry.libvirt.moves.request import Wish, make_request
from vmferry.libvirt.moves.tuning import parse_tuning

PLAIN = StreamWish(encrypted=False)
IN_POSTCOPY = 1  #: VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY
NO_LIMIT = (1 << 63) // MIB - 1


class Daemon:
    """libvirt's connection, and the domain on it, which takes limits."""

    def __init__(self) -> None:
        self.limits: list[tuple[int, int]] = []

    def lookupByName(self, _name: str) -> Daemon:  # noqa: N802  # libvirt's name
        """Return the domain."""
        return self

    def migrateSetMaxSpeed(self, limit: int, flags: int) -> None:  # noqa: N802  # libvirt's name
        """Take a limit in MiB/s."""
        self.limits.append((limit, flags))


@pytest.mark.parametrize(
    ("asked", "version", "limits"),
    [
        ((), (11, 3, 0), [(1, IN_POSTCOPY), (50, IN_POSTCOPY), (NO_LIMIT, IN_POSTCOPY)]),
        (("bandwidth.postcopy=20",), (11, 3, 0), [(1, IN_POSTCOPY), (20, IN_POSTCOPY), (20, IN_POSTCOPY)]),
        ((), (9, 0, 0), []),  # all pages are in one queue: it would only take longer
    ],
)
async def test_pages_that_nobody_waits_for_are_held_back(
    asked: tuple[str, ...], version: tuple[int, int, int], limits: list[tuple[int, int]]
) -> None:
    """Where the others overtake them; in libvirt's whole MiB/s, and never above what was asked for."""
    request = make_request(Wish(PLAIN, postcopy=True, tuning=parse_tuning(asked)), version)
    daemon = Daemon()
    source = LibvirtConnection("qemu:///system", daemon)
    move = LibvirtMove(source, source, "web-7", "qemu+tcp://host-b/system", request)
    for most in (QUIET, BytesPerSecond(50 * MIB), None):
        await move.set_following(most)
    assert daemon.limits == limits


def test_an_old_libvirt_is_told() -> None:
    """Its guests may stand for a while once they have left; without post-copy nobody needs to know."""
    (sentence,) = [one for one in make_request(Wish(PLAIN, postcopy=True), (9, 0, 0)).left_out if "overtake" in one]
    assert "it may stand for a second or two once it has left" in sentence
    assert not [one for one in make_request(Wish(PLAIN), (9, 0, 0)).left_out if "overtake" in one]

"""What an encrypted stream between two real QEMUs is encrypted with, read from the wire."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.qemu.conftest import Start
from tests.qemu.test_real_migration import PAIRS, Version, make_move, name_of
from tests.qemu.wire import Wire

from vmferry.ports.hypervisor import MigrationStatus
from vmferry.qemu.ciphers import cipher_priority
from vmferry.testing.conformance_hypervisor import ADDRESS, SPEC, find_free_port, make_setup, wait_status

pytestmark = pytest.mark.real

#: RFC 8446, appendix B.4
SUITES = {"AES-128-GCM": b"\x13\x01", "CHACHA20-POLY1305": b"\x13\x03"}
HANDSHAKE, SERVER_HELLO = 22, 2


def suite_of(answer: bytes) -> bytes:
    """Return the cipher suite that a TLS server has chosen. RFC 8446 sections 5.1 and 4.1.3."""
    assert answer[0] == HANDSHAKE, answer[:16]
    hello = answer[5:]
    assert hello[0] == SERVER_HELLO, hello[:16]
    after_random = 4 + 2 + 32
    after_session = after_random + 1 + hello[after_random]
    return hello[after_session : after_session + 2]


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
async def test_stream_has_the_fast_cipher(pair: tuple[Version, Version], start: Start, probes_dir: Path) -> None:
    """The destination takes the cipher that comes first for this CPU, whichever versions talk to each other."""
    move, wire, port = await make_move(pair, SPEC, start, probes_dir), Wire(), find_free_port()
    await move.source.prepare_migration(make_setup(), incoming=False)
    await move.destination.prepare_migration(make_setup(), incoming=True)
    await move.destination.listen(ADDRESS, port)
    async with wire.to(port) as relay:
        await move.source.migrate(ADDRESS, relay)
        await wait_status(move.source_events, MigrationStatus.PRE_SWITCHOVER)
        await move.source.migrate_continue()
        await wait_status(move.source_events, MigrationStatus.COMPLETED)
    first = cipher_priority().split("+")[2].removesuffix(":")
    assert suite_of(wire.answer[0]) == SUITES[first]

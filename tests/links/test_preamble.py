"""The bytes before a stream: what each side proves, and that nothing else is let through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.core.errors import Refused
from vmferry.core.ids import HandoverId
from vmferry.links import preamble

MOVE, SECRET = HandoverId("3f2a-move"), "5" * 64
SOURCE_NONCE, DESTINATION_NONCE = b"s" * preamble.NONCE_BYTES, b"d" * preamble.NONCE_BYTES
NONCES = preamble.Nonces(SOURCE_NONCE, DESTINATION_NONCE)


def test_who_knows_the_ticket_is_known_on_both_sides() -> None:
    """The greeting is read back, and each side accepts the other's proof."""
    said = preamble.greeting(MOVE, SOURCE_NONCE)
    head, rest = said[: preamble.HEAD_BYTES], said[preamble.HEAD_BYTES :]
    assert preamble.rest_bytes(head) == len(rest)
    assert preamble.read_rest(rest) == (MOVE, SOURCE_NONCE)
    answered = preamble.answer(SECRET, MOVE, NONCES)
    assert len(answered) == preamble.ANSWER_BYTES
    assert preamble.check_answer(SECRET, MOVE, SOURCE_NONCE, answered) == NONCES
    preamble.check_proof(SECRET, MOVE, NONCES, preamble.proof(SECRET, MOVE, NONCES))


def test_the_secret_is_nowhere_on_the_wire() -> None:
    """What an eavesdropper reads does not contain it."""
    said = preamble.greeting(MOVE, SOURCE_NONCE) + preamble.answer(SECRET, MOVE, NONCES)
    said += preamble.proof(SECRET, MOVE, NONCES)
    assert SECRET.encode() not in said


def test_a_proof_is_good_for_one_role_one_move_and_one_connection() -> None:
    """Sent back, heard elsewhere or made with another secret it is worth nothing."""
    theirs = preamble.answer(SECRET, MOVE, NONCES)[preamble.NONCE_BYTES :]
    other = preamble.Nonces(SOURCE_NONCE, b"x" * preamble.NONCE_BYTES)
    shown = preamble.proof(SECRET, MOVE, NONCES)
    for secret, move, nonces, proof in (
        (SECRET, MOVE, NONCES, theirs),
        (SECRET, MOVE, other, shown),
        (SECRET, HandoverId("another"), NONCES, shown),
        ("6" * 64, MOVE, NONCES, shown),
        (SECRET, MOVE, NONCES, shown[:-1]),
    ):
        with pytest.raises(Refused):
            preamble.check_proof(secret, move, nonces, proof)


def test_an_impostor_is_found_out_by_the_source() -> None:
    """Who listens on the port and does not know the ticket gets no proof from us."""
    with pytest.raises(Refused, match="does not know the ticket"):
        preamble.check_answer(SECRET, MOVE, SOURCE_NONCE, preamble.answer("6" * 64, MOVE, NONCES))


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    """Whatever comes, it is refused as such, or it is a greeting that names a hand-over's id."""
    try:
        count = preamble.rest_bytes(data[: preamble.HEAD_BYTES])
        move, nonce = preamble.read_rest(data[preamble.HEAD_BYTES :][:count])
    except Refused:
        return
    assert data.startswith(preamble.MAGIC)
    assert 1 <= len(move) <= 64
    assert len(nonce) == preamble.NONCE_BYTES

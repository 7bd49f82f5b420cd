"""The bytes at the start of a connection between two agents, before it is QEMU's: sans I/O.

Both sides prove that they know the ticket's secret, which travelled over the agents' mutual TLS; it never travels
here, and what is heard on the wire is of no use for another connection.

    source       MAGIC, length of the hand-over's id, id, 32 random bytes
    destination  32 random bytes, proof
    source       proof
    destination  ACCEPTED, once QEMU has the connection

Every length is known before it is read, so that no byte of the stream behind it is taken. A destination that lets
nobody in says nothing and closes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from vmferry.core.errors import Refused
from vmferry.core.ids import HandoverId

MAGIC = b"vmferry-stream-1"
NONCE_BYTES = 32
PROOF_BYTES = hashlib.sha256().digest_size
#: Of MAGIC and the id's length.
HEAD_BYTES = len(MAGIC) + 1
ANSWER_BYTES = NONCE_BYTES + PROOF_BYTES
ACCEPTED = b"\x01"
_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_SOURCE, _DESTINATION = b"source", b"destination"


@dataclass(frozen=True, slots=True)
class Nonces:
    """What each side drew for this one connection."""

    source: bytes
    destination: bytes


def greeting(handover: HandoverId, nonce: bytes) -> bytes:
    """Return what a source says first."""
    name = handover.encode("ascii")
    return MAGIC + bytes([len(name)]) + name + nonce


def rest_bytes(head: bytes) -> int:
    """Return how many bytes follow the head.

    Raises:
        Refused: it is none of ours.
    """
    if len(head) != HEAD_BYTES or not hmac.compare_digest(head[:-1], MAGIC):
        raise Refused("what came is no greeting of a vmferry agent")
    return head[-1] + NONCE_BYTES


def read_rest(rest: bytes) -> tuple[HandoverId, bytes]:
    """Return the hand-over that is greeted for, and the source's nonce.

    Raises:
        Refused: that is no hand-over's id.
    """
    name, nonce = rest[:-NONCE_BYTES], rest[-NONCE_BYTES:]
    if not _ID.fullmatch(name):
        raise Refused("what came names no hand-over")
    return HandoverId(name.decode("ascii")), nonce


def answer(secret: str, handover: HandoverId, nonces: Nonces) -> bytes:
    """Return what a destination answers to a greeting."""
    return nonces.destination + _proof(secret, _DESTINATION, handover, nonces)


def check_answer(secret: str, handover: HandoverId, mine: bytes, answered: bytes) -> Nonces:
    """Return both nonces.

    Raises:
        Refused: who answers does not know the secret.
    """
    nonces = Nonces(mine, answered[:NONCE_BYTES])
    if not hmac.compare_digest(answered[NONCE_BYTES:], _proof(secret, _DESTINATION, handover, nonces)):
        raise Refused("who answers does not know the ticket")
    return nonces


def proof(secret: str, handover: HandoverId, nonces: Nonces) -> bytes:
    """Return what a source says last."""
    return _proof(secret, _SOURCE, handover, nonces)


def check_proof(secret: str, handover: HandoverId, nonces: Nonces, shown: bytes) -> None:
    """Return if the source knows the secret.

    Raises:
        Refused: it does not.
    """
    if not hmac.compare_digest(shown, proof(secret, handover, nonces)):
        raise Refused("who connects does not know the ticket")


def _proof(secret: str, role: bytes, handover: HandoverId, nonces: Nonces) -> bytes:
    text = b"\0".join((MAGIC, role, handover.encode("ascii"))) + nonces.source + nonces.destination
    return hmac.new(secret.encode("ascii"), text, hashlib.sha256).digest()

"""Multiboot images of a few instructions: guests that do one thing at once."""

from __future__ import annotations

import struct

LOAD_ADDRESS = 0x100000
HEADER_BYTES = 32
_ADDRESSES_GIVEN = 1 << 16
_MAGIC = 0x1BADB002


def out8(port: int, value: int) -> bytes:
    """Return code that writes a byte to a port."""
    return b"\x66\xba" + struct.pack("<H", port) + bytes([0xB0, value, 0xEE])


def out16(port: int, value: int) -> bytes:
    """Return code that writes a word to a port."""
    return b"\x66\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<H", value) + b"\x66\xef"


HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt

HELLO = b"".join(out8(0x3F8, byte) for byte in b"hello\n")
BEAT = out8(0xE9, ord("b"))
#: ICH9's PM1a control register, where SeaBIOS puts it: sleep enable, type S5
POWER_OFF = out16(0x604, 0x2000)
RESET = out8(0x64, 0xFE)
PANIC = out8(0x505, 1)


def make_image(code: bytes) -> bytes:
    """Return a multiboot image that runs the code once and halts. Source: Multiboot 0.6.96, section 3.1."""
    body = code + HALT
    end = LOAD_ADDRESS + HEADER_BYTES + len(body)
    entry = LOAD_ADDRESS + HEADER_BYTES
    checksum = -(_MAGIC + _ADDRESSES_GIVEN) & 0xFFFFFFFF
    header = (_MAGIC, _ADDRESSES_GIVEN, checksum, LOAD_ADDRESS, LOAD_ADDRESS, end, end, entry)
    return struct.pack("<8I", *header) + body

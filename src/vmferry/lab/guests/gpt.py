"""Writes GUID partition tables whose bytes depend on nothing but the partitions."""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass

SECTOR = 512
ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_TYPE = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

_ENTRIES, _ENTRY_BYTES = 128, 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_BYTES // SECTOR
_ENTRY = struct.Struct("<16s16sQQQ72s")
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition.

    Attributes:
        label: Its name, at most 36 characters; also what its GUID is made from.
        type_guid: What it is for.
        start: First byte, a multiple of a sector.
        size: Bytes, a multiple of a sector.
    """

    label: str
    type_guid: uuid.UUID
    start: int
    size: int


def tables(partitions: list[Partition], disk_bytes: int) -> tuple[bytes, bytes]:
    """Return what stands at the start of the disk and what at its very end.

    Source: UEFI Specification 2.10, section 5.3.
    """
    last = disk_bytes // SECTOR - 1
    entries = b"".join(_entry(partition) for partition in partitions).ljust(_ENTRIES * _ENTRY_BYTES, b"\0")
    first = _header(here=1, other=last, table=2, last=last, entries=entries)
    second = _header(here=last, other=1, table=last - _TABLE_SECTORS, last=last, entries=entries)
    return _protective_mbr(last) + first + entries, entries + second


def _guid(label: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{label}.partition.vmferry.org")


def _entry(partition: Partition) -> bytes:
    first = partition.start // SECTOR
    return _ENTRY.pack(
        partition.type_guid.bytes_le,
        _guid(partition.label).bytes_le,
        first,
        first + partition.size // SECTOR - 1,
        0,
        partition.label.encode("utf-16-le"),
    )


def _header(*, here: int, other: int, table: int, last: int, entries: bytes) -> bytes:
    def packed(checksum: int) -> bytes:
        usable = (2 + _TABLE_SECTORS, last - _TABLE_SECTORS - 1)
        return _HEADER.pack(
            *(b"EFI PART", 0x10000, _HEADER.size, checksum, 0, here, other, *usable),
            *(_guid("disk").bytes_le, table, _ENTRIES, _ENTRY_BYTES, zlib.crc32(entries)),
        )

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")


def _protective_mbr(last: int) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, b"\0\x02\0", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    return (b"\0" * 446 + entry).ljust(510, b"\0") + b"\x55\xaa"

"""What a qcow2 image's header says of other files, against what the guest file says.

The header is data that a guest which broke out of its QEMU can write, so it decides nothing: an image stands on what
the guest file names, and one whose header says something else is refused.

Source: QEMU docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmferry.core.errors import BadInput
from vmferry.core.guest import Backing, DiskFormat
from vmferry.qemu.image_dirs import ImageDirs

MAGIC = b"QFI\xfb"
#: version, offset and length of the backing file's name, incompatible features
_HEADER = struct.Struct(">4sIQI52xQ")
_HEADER_LENGTH_AT, _LENGTH_OF_VERSION_2 = 100, 72
_EXTERNAL_DATA = 1 << 2
_MOST_NAME = 1023
_LARGEST_CLUSTER = 2 << 20  #: the name stands in the first one
#: What can be shown as a line to write: no quotes, no escapes, nothing that a terminal obeys.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/@+-]+")
#: Of header extensions: type and length; each is padded to 8 bytes.
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT, _NO_MORE = 0xE2792ACA, 0
_MOST_EXTENSIONS = 32


@dataclass(frozen=True, slots=True)
class _Named:
    """The image that a header names."""

    path: str
    format: str | None


def check_header(path: str, under: Sequence[Backing], images: ImageDirs) -> None:
    """Return if an image is qcow2, has all its data, and stands on what the guest file says.

    Args:
        path: the image.
        under: the one below it, as the guest file has it; empty: none.
        images: which files may be looked at.

    Raises:
        BadInput: it is not so.
        Broken: it cannot be opened.
    """
    with os.fdopen(images.open(path, os.O_RDONLY, "disk image"), "rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:4] != MAGIC:
            raise BadInput(f"disk image {path} is not qcow2", fix='set format = "raw", or convert it')
        _, version, name_at, name_bytes, incompatible = _HEADER.unpack(header)
        if version >= 3 and incompatible & _EXTERNAL_DATA:
            raise BadInput(f"disk image {path} keeps its data in another file", fix="convert it with qemu-img convert")
        named = _read_backing(file, path, version, name_at, name_bytes) if name_at else None
    _compare(path, named, under[0] if under else None, images)


def _compare(path: str, named: _Named | None, given: Backing | None, images: ImageDirs) -> None:
    if named is None and given is not None:
        raise BadInput(
            f"disk image {path} stands on no other image, and the guest file says that it does on {given.path}",
            fix="leave `backing` out: QEMU would read the guest's disk wrongly",
        )
    if named is not None and given is None:
        raise BadInput(
            f"disk image {path} has a backing file, {named.path!r}, which the guest file does not name",
            fix=_how_to_name(named, path),
        )
    if named is not None and given is not None:
        if not _is_one(named.path, given.path, images):
            raise BadInput(
                f"disk image {path} stands on {named.path!r}, and the guest file says {given.path}",
                fix="name the right one, or tell the image:"
                f" qemu-img rebase -u -b {given.path} -F {given.format} {path}",
            )
        if named.format not in (None, given.format.value):
            raise BadInput(
                f"disk image {path} stands on an image of format {named.format!r}, and the guest file says"
                f" {given.format}",
                fix="name the right format: with a wrong one the guest's disk would be read wrongly",
            )


def _how_to_name(named: _Named, path: str) -> str:
    """Return what to do about an image that the guest file does not name; a header is not to be pasted blindly."""
    flatten = f"flatten it: qemu-img rebase -b '' {path}"
    known = [one.value for one in DiskFormat]
    if not _PLAIN_PATH.fullmatch(named.path) or named.format not in (None, *known):
        return f"look who wrote that name; or {flatten}"
    word = named.format or " or ".join(known)
    return (
        f'if you put it on that image, write backing = [{{ image = "{named.path}", format = "{word}" }}] into its'
        f" [[disk]], with what that one stands on behind it; or {flatten}"
    )


def _is_one(path: str, other: str, images: ImageDirs) -> bool:
    """Tell whether two paths lead to one file; what guests may not have is not looked at."""
    if path == other:
        return True
    try:
        return images.why_not(path) is None and Path(path).samefile(other)
    except (OSError, ValueError):
        return False


def _read_backing(file: BinaryIO, path: str, version: int, name_at: int, name_bytes: int) -> _Named:
    if not 0 < name_bytes <= _MOST_NAME or name_at > _LARGEST_CLUSTER:
        raise BadInput(
            f"disk image {path} has a header that is damaged: a backing file's name of {name_bytes} bytes at"
            f" {name_at:#x}"
        )
    file.seek(name_at)
    name = file.read(name_bytes).decode("utf-8", "replace")
    return _Named(os.path.normpath(Path(path).parent / name), _read_format(file, version))


def _read_format(file: BinaryIO, version: int) -> str | None:
    """Return the format of the image below, if the header says it."""
    at = _LENGTH_OF_VERSION_2
    if version >= 3:
        file.seek(_HEADER_LENGTH_AT)
        at = int.from_bytes(file.read(4), "big")
    for _ in range(_MOST_EXTENSIONS):
        file.seek(at)
        head = file.read(_EXTENSION.size)
        if len(head) < _EXTENSION.size:
            return None
        kind, length = _EXTENSION.unpack(head)
        if kind == _NO_MORE:
            return None
        if kind == _BACKING_FORMAT:
            return file.read(min(length, _MOST_NAME)).decode("utf-8", "replace")
        at += _EXTENSION.size + (length + 7) // 8 * 8
    return None

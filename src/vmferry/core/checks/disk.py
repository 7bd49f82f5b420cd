"""Disk images: one file that both hosts use with a cache that both see through, or a copy that can be made.

What nobody writes may be a file of its own on each host, with the same content.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.checks.files import file_system, is_same_file
from vmferry.core.disks import Image, written_images
from vmferry.core.errors import Blocker
from vmferry.core.guest import DIRECT_CACHES, DiskFormat
from vmferry.core.host import FileFacts
from vmferry.core.units import format_bytes

_OR_COPY = "or have it copied: --copy-disks"


def check_disks(case: Case) -> Iterator[Blocker]:
    """Every image is at the destination what it is at the source, or is copied there."""
    copied = {image.path for image in images_to_copy(case)}
    if copied:
        yield from _check_way(case)
    for disk in case.guest.spec.disks:
        if disk.path in copied:
            yield from check_copy(case, disk.path, label="disk")
        elif disk.read_only:
            yield from check_fixed_file(case, disk.path, what="read-only disk")
        else:
            yield from check_shared_file(case, disk.path, label="disk")
        for below in disk.backing:
            yield from check_fixed_file(case, below.path, what=f"backing file (of {disk.path})")
        if disk.cache not in DIRECT_CACHES and not disk.read_only:
            yield Blocker(
                "disk.unsafe-cache",
                f"disk {disk.path} of guest {case.guest.spec.name} has cache mode {disk.cache!r}: pages of it may stay"
                f" in the page cache of {case.source.name}; {' or '.join(DIRECT_CACHES)} is needed",
                'restart the guest with cache = "none" for this disk',
            )


def images_to_copy(case: Case) -> tuple[Image, ...]:
    """Return the images that the hosts do not share, if they may be copied."""
    if not case.copy_disks:
        return ()
    return tuple(image for image in written_images(case.guest.spec) if not _is_shared(case, image.path))


def _is_shared(case: Case, path: str) -> bool:
    here, there = case.at_source(path), case.at_destination(path)
    return here is not None and there is not None and is_same_file(here, there)


def _check_way(case: Case) -> Iterator[Blocker]:
    """A pipeline carries one stream and no disk beside it; images that are not raw ones need a tool to be made."""
    formats = {str(image.format) for image in images_to_copy(case) if image.format is not DiskFormat.RAW}
    if formats and not case.destination.makes_images:
        yield Blocker(
            "disk.copy-no-tool",
            f"images of format {', '.join(sorted(formats))} of guest {case.guest.spec.name} cannot be made on"
            f" {case.destination.name}: there is no qemu-img",
            f"install qemu-utils (Debian) on {case.destination.name}, or convert the images to raw",
        )
    if case.stream.pipeline is not None:
        yield Blocker(
            "disk.copy-beside-pipeline",
            f"disks of guest {case.guest.spec.name} cannot be copied through pipeline {case.stream.pipeline}: it"
            " carries the memory only",
            "leave --pipeline out, or put the disks on storage that both hosts mount",
        )


def check_copy(case: Case, path: str, *, label: str) -> Iterator[Blocker]:
    """Yield why a copy of an image cannot be made at the destination, at the same path.

    Args:
        case: the question.
        path: the image.
        label: what it is, `disk` or `nvram`: first part of the code.
    """
    here, there = case.at_source(path), case.at_destination(path)
    name, host = f"{label} {path} of guest {case.guest.spec.name}", case.destination.name
    if (why := dict(case.runtime.not_mirrored).get(path)) is not None:
        yield Blocker(
            f"{label}.copy-not-mirrored",
            f"{name} cannot be copied: {why}",
            "delete internal snapshots (qemu-img snapshot -d, guest stopped), or put the image on shared storage",
        )
    if here is None or not here.exists:
        yield Blocker(
            f"{label}.copy-unreadable",
            f"{name} cannot be seen on {case.source.name}{_reason(here)}",
            f"bring the image back to {path} on {case.source.name}",
        )
    elif there is None or (not there.exists and there.room_bytes is None):
        yield Blocker(
            f"{label}.copy-impossible",
            f"{name} cannot be copied to {host}{_reason(there)}",
            f"make the directory of {path} on {host}, below its image_dirs and writable for the agent",
        )
    elif there.exists:
        yield Blocker(
            f"{label}.copy-exists",
            f"{name} cannot be copied to {host}: a file is there at that path ({format_bytes(there.size_bytes)}), and"
            f" it is not certain that it is another one: {case.source.name} says {here.identity!r}, {host} says"
            f" {there.identity!r}",
            f"look at it: if it is this very image, mount its storage alike on both hosts; else move {path} on {host}"
            " away",
        )
    elif there.room_bytes is not None and there.room_bytes < (needed := _needed_beside(case, path)):
        yield Blocker(
            f"{label}.copy-no-room",
            f"{name} and what is copied beside it have {format_bytes(needed)}, {format_bytes(there.room_bytes)} is free"
            f" on {host}",
            f"make room on the file system of {path} on {host}",
        )


def _needed_beside(case: Case, path: str) -> int:
    """Return the size of all that is copied into the directory of an image, itself included."""
    folder = path.rpartition("/")[0]
    beside = [image.path for image in images_to_copy(case) if image.path.rpartition("/")[0] == folder]
    return sum(here.size_bytes for each in beside if (here := case.at_source(each)) is not None)


def check_fixed_file(case: Case, path: str, *, what: str) -> Iterator[Blocker]:
    """Yield why an image that nobody writes is not one with the same content at the destination, whosever file it is.

    Args:
        case: the question.
        path: the file, the same path on both hosts.
        what: it is.
    """
    here, there = case.at_source(path), case.at_destination(path)
    source, host = case.source.name, case.destination.name
    name = f"{what} {path} of guest {case.guest.spec.name}"
    if there is None or not there.exists or not there.readable:
        yield Blocker(
            "disk.fixed-not-seen",
            f"{name} cannot be read on {host}{_reason(there)}",
            f"copy it from {source} to the same path on {host}, or mount the storage that holds it there",
        )
    elif here is not None and is_same_file(here, there):
        return
    elif here is not None and _unread(here) + _unread(there) > 0:
        yield Blocker(
            "disk.fixed-being-read",
            f"{name} is another file on {host}, and whether it has the same content is not known yet:"
            f" {_how_far(here)} are read on {source}, {_how_far(there)} on {host}",
            "check again: the reading goes on where it stopped, and is done once",
        )
    elif here is None or None in (here.sha256, there.sha256):
        yield Blocker(
            "disk.fixed-not-compared",
            f"{name} is not certainly the same on {host}: it is another file there, and its content was not compared"
            f" ({_why_not_compared(here)} on {source}, {_why_not_compared(there)} on {host})",
            f"put {path} on storage that both hosts mount, or on a local file system of each",
        )
    elif here.sha256 != there.sha256:
        yield Blocker(
            "disk.fixed-differs",
            f"{name} has other content on {host}: {_content(there)}, on {source} it is {_content(here)}",
            f"copy it from {source} to {host}; look first who else uses the file that is there",
        )


def _unread(file: FileFacts) -> int:
    """Return how much of a file that is being read is left."""
    return file.size_bytes - file.read_bytes if file.sha256 is None and file.read_bytes else 0


def _how_far(file: FileFacts) -> str:
    return f"{format_bytes(file.read_bytes)} of {format_bytes(file.size_bytes)}"


def _why_not_compared(file: FileFacts | None) -> str:
    if file is None or not file.exists:
        return "not seen"
    if file.sha256 is not None:
        return "read"
    return f"{format_bytes(file.size_bytes)} on {file_system(file)}"


def _content(file: FileFacts) -> str:
    return f"{format_bytes(file.size_bytes)}, sha256 {(file.sha256 or '')[:12]}"


def check_shared_file(case: Case, path: str, *, label: str) -> Iterator[Blocker]:
    """Yield why a file that the guest writes is not the same, usable file at the destination.

    Args:
        case: the question.
        path: the file, the same path on both hosts.
        label: what it is, `disk` or `nvram`: first part of the code.
    """
    there = case.at_destination(path)
    host = case.destination.name
    if there is None or not there.exists:
        yield Blocker(
            f"{label}.not-seen",
            f"{label} {path} of guest {case.guest.spec.name} cannot be seen on {host}{_reason(there)}",
            f"mount the storage that holds it on {host} at the same path, {_OR_COPY}",
        )
        return
    if not there.readable or not there.writable:
        access = "writable" if there.readable else "readable"
        yield Blocker(
            f"{label}.not-{access}",
            f"{label} {path} of guest {case.guest.spec.name} is there on {host} but not {access}{_reason(there)}",
            f"give the agent on {host} access to it (mount options, export options, mode of the file)",
        )
    yield from _check_identity(case, path, there, label=label)


def _check_identity(case: Case, path: str, there: FileFacts, *, label: str) -> Iterator[Blocker]:
    here = case.at_source(path)
    if here is not None and is_same_file(here, there):
        return
    seen = here.identity if here is not None else "nothing"
    yield Blocker(
        f"{label}.not-same-file",
        f"{label} {path} of guest {case.guest.spec.name} is not certainly one file: {case.source.name} says"
        f" {seen!r}, {case.destination.name} says {there.identity!r}",
        f"put {path} on storage that both hosts mount (e.g. NFSv4) and restart the guest from there, {_OR_COPY}",
    )


def _reason(file: FileFacts | None) -> str:
    return f" ({file.error})" if file is not None and file.error else ""

"""Disk images: one file that both hosts use with a cache that both see through, or a copy that can be made."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.checks.files import is_same_file
from vmferry.core.disks import Image, written_images
from vmferry.core.errors import Blocker
from vmferry.core.guest import DIRECT_CACHES
from vmferry.core.host import FileFacts
from vmferry.core.units import format_bytes


def check_disks(case: Case) -> Iterator[Blocker]:
    """Every image is at the destination what it is at the source, or is copied there."""
    copied = {image.path for image in images_to_copy(case)}
    if copied:
        yield from _check_way(case)
    for disk in case.guest.spec.disks:
        if disk.path in copied:
            yield from check_copy(case, disk.path, label="disk")
        else:
            yield from check_shared_file(case, disk.path, label="disk", writable=not disk.read_only)
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
    """A pipeline carries one stream and no disk beside it."""
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


def check_shared_file(case: Case, path: str, *, label: str, writable: bool) -> Iterator[Blocker]:
    """Yield why a file that moves with the guest is not the same, usable file at the destination.

    Args:
        case: the question.
        path: the file, the same path on both hosts.
        label: what it is, `disk` or `nvram`: first part of the code.
        writable: whether the guest writes to it.
    """
    there = case.at_destination(path)
    host = case.destination.name
    if there is None or not there.exists:
        yield Blocker(
            f"{label}.not-seen",
            f"{label} {path} of guest {case.guest.spec.name} cannot be seen on {host}{_reason(there)}",
            f"mount the storage that holds it on {host} at the same path{_or_copy(writable=writable)}",
        )
        return
    if not there.readable or (writable and not there.writable):
        access = "writable" if there.readable else "readable"
        yield Blocker(
            f"{label}.not-{access}",
            f"{label} {path} of guest {case.guest.spec.name} is there on {host} but not {access}{_reason(there)}",
            f"give the agent on {host} access to it (mount options, export options, mode of the file)",
        )
    yield from _check_identity(case, path, there, label=label, writable=writable)


def _check_identity(case: Case, path: str, there: FileFacts, *, label: str, writable: bool) -> Iterator[Blocker]:
    here = case.at_source(path)
    if here is not None and is_same_file(here, there):
        return
    seen = here.identity if here is not None else "nothing"
    yield Blocker(
        f"{label}.not-same-file",
        f"{label} {path} of guest {case.guest.spec.name} is not certainly one file: {case.source.name} says"
        f" {seen!r}, {case.destination.name} says {there.identity!r}",
        f"put {path} on storage that both hosts mount (e.g. NFSv4) and restart the guest from there"
        f"{_or_copy(writable=writable)}",
    )


def _or_copy(*, writable: bool) -> str:
    return ", or have it copied: --copy-disks" if writable else ""


def _reason(file: FileFacts | None) -> str:
    return f" ({file.error})" if file is not None and file.error else ""

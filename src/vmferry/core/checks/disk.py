"""Disk images: one file, seen, readable and writable from both hosts, with a cache that both see through."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.checks.files import is_same_file
from vmferry.core.errors import Blocker
from vmferry.core.guest import DIRECT_CACHES
from vmferry.core.host import FileFacts


def check_disks(case: Case) -> Iterator[Blocker]:
    """Every image is at the destination what it is at the source."""
    for disk in case.guest.spec.disks:
        yield from check_shared_file(case, disk.path, label="disk", writable=not disk.read_only)
        if disk.cache not in DIRECT_CACHES and not disk.read_only:
            yield Blocker(
                "disk.unsafe-cache",
                f"disk {disk.path} of guest {case.guest.spec.name} has cache mode {disk.cache!r}: pages of it may stay"
                f" in the page cache of {case.source.name}; {' or '.join(DIRECT_CACHES)} is needed",
                'restart the guest with cache = "none" for this disk',
            )


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
            f"mount the storage that holds it on {host} at the same path",
        )
        return
    if not there.readable or (writable and not there.writable):
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
        f"put {path} on storage that both hosts mount (e.g. NFSv4) and restart the guest from there",
    )


def _reason(file: FileFacts | None) -> str:
    return f" ({file.error})" if file is not None and file.error else ""

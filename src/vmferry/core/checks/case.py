"""The question that every family answers: this guest, from there to here, with what both sides said."""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.capabilities import DEFAULT_STREAM, StreamWish
from vmferry.core.errors import Blocker
from vmferry.core.guest import FrozenGuest
from vmferry.core.host import FileFacts, GuestProbe, GuestRuntime, HostFacts
from vmferry.core.migratable import MigratableDevice, agreed


@dataclass(frozen=True, slots=True)
class Case:
    """One guest, its source, its destination, and what each of them said."""

    guest: FrozenGuest
    runtime: GuestRuntime
    source: HostFacts
    destination: HostFacts
    probe: GuestProbe
    postcopy: bool = False  #: post-copy is to be allowed
    stream: StreamWish = DEFAULT_STREAM
    copy_disks: bool = False  #: images that the hosts do not share may be copied
    distrusted: tuple[Blocker, ...] = ()  #: why the source does not believe the destination's certificate

    @property
    def migratable(self) -> tuple[MigratableDevice, ...]:
        """Return which of its host's devices go with the guest; it lets the others go."""
        return agreed(self.runtime.migratable, self.probe.offers, postcopy=self.postcopy)

    def at_source(self, path: str) -> FileFacts | None:
        """Return the source's view of a file, None when it said nothing about it."""
        return _find(self.runtime.source_files, path)

    def at_destination(self, path: str) -> FileFacts | None:
        """Return the destination's view of a file, None when it said nothing about it."""
        return _find(self.probe.files, path)


def _find(files: tuple[FileFacts, ...], path: str) -> FileFacts | None:
    return next((file for file in files if file.path == path), None)


def name_list(names: frozenset[str] | set[str] | tuple[str, ...] | list[str], limit: int = 8) -> str:
    """Return names for a sentence, sorted, at most `limit` of them, `none` when there are none."""
    ordered = sorted(set(names))
    if not ordered:
        return "none"
    more = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {more} more" if more > 0 else "")

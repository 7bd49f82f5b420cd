"""Every way that a stream can be asked to take, and what came of one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmferry.core.errors import Blocker

#: QEMU to QEMU between hosts with a kernel of their own.
RDMA = "rdma"
LINKS = ("tcp", "fd", "unix", "pipeline zstd", RDMA)
#: Channels and compression; QEMU's defaults first.
WAYS: tuple[tuple[int | None, str], ...] = (
    *((None, "none"), (4, "none"), (None, "xbzrle"), (4, "zlib"), (4, "zstd"), (4, "qpl")),
    *((4, "uadk"), (4, "qatzip"), (4, "xbzrle")),
)
#: By what it is encrypted -> what is asked for.
ENCRYPTIONS: dict[str, dict[str, object]] = {
    "TLS": {"plain": False},
    "x509": {"encryption": "x509"},
    "clear": {"plain": True},
}


@dataclass(frozen=True)
class Way:
    """One way to ask for."""

    link: str
    channels: int | None
    compression: str
    encryption: str  #: as the page names it
    postcopy: bool
    disk: bool  #: it has one that only its host has

    @property
    def options(self) -> dict[str, object]:
        """Return it as the agent's API has it."""
        link, _, name = self.link.partition(" ")
        options: dict[str, object] = {"pipeline": name} if name else {"link": link}
        options |= {"compression": self.compression, **ENCRYPTIONS[self.encryption]}
        if self.channels is not None:
            options["channels"] = self.channels
        if self.disk:
            options["copy_disks"] = True
        return options | ({"postcopy": True, "postcopy_after": 1} if self.postcopy else {})

    @property
    def cells(self) -> tuple[str, ...]:
        """Return it as a row begins."""
        kind = "post-copy" if self.postcopy else "pre-copy"
        return (
            self.link,
            str(self.channels or 1),
            self.compression,
            self.encryption,
            kind,
            "local" if self.disk else "none",
        )


@dataclass(frozen=True)
class Seen:
    """What came of it."""

    works: bool
    told: str


#: `vmferry save` and `restore`: nothing of the way can be asked for.
THROUGH_A_FILE = Way("file", None, "none", "clear", postcopy=False, disk=False)


def ways() -> Iterator[Way]:
    """Yield every way, the plainest first."""
    both = (False, True)
    for disk, link, (channels, compression), encryption, postcopy in itertools.product(
        both, LINKS, WAYS, ENCRYPTIONS, both
    ):
        if encryption != "x509" or not link.startswith("pipeline"):  # makes no sense: its commands encrypt
            yield Way(link, channels, compression, encryption, postcopy, disk)
    yield THROUGH_A_FILE


def told_by(blockers: Sequence[Blocker], destination: str) -> str:
    """Return why a way is refused, alike for every run."""
    told = "; ".join(f"{one.what} ({one.fix})" for one in blockers)
    return re.sub(r"uid \d+", "uid N", told.replace(destination, "the destination"))

"""What a built guest consists of, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

#: linux: Debian's kernel with our workload; micro: our own 32-bit program; debian: a stock Debian on a disk.
GuestKind = Literal["linux", "micro", "debian"]


@dataclass(frozen=True, slots=True)
class GuestImage:
    """The files of one built-in guest; they are never changed after the build.

    Attributes:
        kind: Which of the built-in guests this is.
        kernel: For QEMU's ``-kernel``, or None when the guest boots from a disk.
        initrd: For ``-initrd``, or None.
        cmdline: The fixed part of the kernel command line; `append` adds the workload's settings.
        disks: Disk images, opened read-only or as backing files: a guest that writes needs an overlay.
        firmware: UEFI code for the first pflash drive, or None for the machine's BIOS.
        nvram: Template of the UEFI variables for the second pflash drive; each guest gets a copy.
        content_hash: SHA-256 over names and bytes of all files above.
    """

    kind: GuestKind
    kernel: Path | None
    initrd: Path | None
    cmdline: str
    disks: tuple[Path, ...]
    firmware: Path | None
    nvram: Path | None
    content_hash: str

    def append(self, **settings: object) -> str:
        """Return the kernel command line with the workload's settings added, in the order given.

        Args:
            **settings: For linux and debian ``mb`` (MiB), ``rate`` (MiB/s), ``pattern`` (sequential, random,
                hotspot), ``data`` (random, compressible), ``ip`` (address/prefix of the first NIC),
                ``beat_us``, ``seed``; for linux ``throttle`` (``on``: the workload runs under
                vmferry-throttle); for micro ``mb`` and ``rate``.
        """
        return " ".join([self.cmdline, *(f"{key}={value}" for key, value in settings.items())]).strip()

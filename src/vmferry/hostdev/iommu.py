"""Looks at this host's IOMMU, and tells its kernel to use it from its next start on (GRUB, as Debian has it)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from vmferry.core.errors import Broken, Refused
from vmferry.core.iommu import OPTIONS, IommuFacts
from vmferry.hostdev.inventory import NO_IOMMU_GROUP
from vmferry.hostdev.sysfs import Sysfs

#: Ours alone: taking the file away takes it back.
GRUB_FILE = "etc/default/grub.d/vmferry-iommu.cfg"
_GROUPS = "kernel/iommu_groups"
_GRUB_FOLDER = "etc/default/grub.d"
_LINE = 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {}"\n'
_WRITTEN = re.compile(r'^GRUB_CMDLINE_LINUX_DEFAULT="\$GRUB_CMDLINE_LINUX_DEFAULT ([^"]*)"$', re.MULTILINE)
_UPDATE_LIMIT_S = 300.0


def iommu_facts(sysfs: Sysfs, root: Path = Path("/")) -> IommuFacts:
    """Return what is seen of the IOMMU on this host."""
    tables = frozenset(sysfs.names("firmware/acpi/tables")) & OPTIONS.keys()
    written = _WRITTEN.search(_text(root / GRUB_FILE))
    return IommuFacts(
        tables=tables,
        words=tuple(_text(root / "proc/cmdline").split()),
        groups=sum(sysfs.read(f"{_GROUPS}/{one}/name") != NO_IOMMU_GROUP for one in sysfs.names(_GROUPS)),
        next_words=() if written is None else tuple(written[1].split()),
    )


def write_options(options: tuple[str, ...], root: Path = Path("/")) -> Path:
    """Tell the kernel these from its next start on, and return the file that says so.

    On failure the file is as it was before, and what GRUB has made of it may be renewed by `update-grub`.

    Raises:
        Refused: this host has no GRUB as Debian has it.
        Broken: it cannot be written, or GRUB refuses it, in its words.
    """
    update = shutil.which("update-grub", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if update is None or not (root / _GRUB_FOLDER).is_dir():
        raise Refused(
            "This host's kernel is not started by GRUB as Debian has it (no update-grub, or no /etc/default/grub.d)",
            fix=f"add `{' '.join(options)}` to the kernel's command line where it is, and reboot",
        )
    file = root / GRUB_FILE
    before = file.read_bytes() if file.exists() else None
    try:
        _replace(file, _LINE.format(" ".join(options)).encode())
        subprocess.run([update], check=True, capture_output=True, text=True, timeout=_UPDATE_LIMIT_S)
    except (OSError, subprocess.SubprocessError) as error:
        _put_back(file, before)
        said = (getattr(error, "stderr", None) or str(error)).strip()[-500:]
        raise Broken(f"The kernel's options could not be written to {file}: {said}", fix="be root") from error
    return file


def _replace(file: Path, content: bytes) -> None:
    fresh = file.with_suffix(".cfg.new")
    fresh.write_bytes(content)
    fresh.replace(file)


def _put_back(file: Path, before: bytes | None) -> None:
    try:
        file.with_suffix(".cfg.new").unlink(missing_ok=True)
        if before is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(before)
    except OSError:
        return


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""

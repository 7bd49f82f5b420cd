"""Which QEMU program to run, and how to tell later that it is still the same one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmferry.core.errors import BadInput


@dataclass(frozen=True, slots=True)
class QemuBinaryConfig:
    """One QEMU: the start of its command line, and what its environment needs.

    Args:
        argv: the program, and `-L DIR` for each firmware directory when it is not the system's own.
        env: variables to add, e.g. QEMU_MODULE_DIR. Nothing of the agent's environment is passed on.
    """

    argv: tuple[str, ...] = ("qemu-system-x86_64",)
    env: Mapping[str, str] = field(default_factory=dict)

    def resolved(self) -> QemuBinaryConfig:
        """Return the same with an absolute program path.

        Raises:
            BadInput: there is no such program.
        """
        found = shutil.which(self.argv[0])
        if found is None:
            raise BadInput(
                f"QEMU program {self.argv[0]} does not exist or cannot be run",
                fix="install qemu-system-x86, or name the program in the agent's configuration",
            )
        return QemuBinaryConfig((str(Path(found).absolute()), *self.argv[1:]), dict(self.env))

    def identity(self) -> str:
        """Return what changes whenever the program does: path, modification time and size."""
        stat = Path(self.argv[0]).stat()
        return f"{' '.join(self.argv)}:{stat.st_mtime_ns}:{stat.st_size}"

    def environment(self) -> dict[str, str]:
        """Return the whole environment of a QEMU process; `C` keeps its messages in one language."""
        return {"PATH": os.defpath, "LC_ALL": "C", **self.env}

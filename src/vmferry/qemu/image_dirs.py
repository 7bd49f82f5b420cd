"""Which files of this host a guest may be given: operators may run guests, they may not read the host's files.

The agent opens files with its own rights, often root's, and passes them to QEMU. Without a limit an image
`/etc/shadow` or `initrd = "/var/lib/vmferry/ca/ca-key.pem"` would show these files to whoever may run a guest.

Source: path_resolution(7), symlink(7); `protected_hardlinks` of proc_sys_fs(5) covers hard links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmferry.core.errors import BadInput, Broken

#: Devices are named by links that udev makes; whoever can make those owns the host already.
_DEV = Path("/dev")


@dataclass(frozen=True, slots=True)
class ImageDirs:
    """Directories below which files of guests lie. The deepest directory that holds a file decides.

    Args:
        allowed: files below these may be used; symbolic links are followed first, except those of block devices
            below an allowed directory in /dev.
        private: files below these may not: the agent's own.
    """

    allowed: tuple[Path, ...] = (Path("/"),)
    private: tuple[Path, ...] = ()

    def why_not(self, path: str) -> str | None:
        """Return why a path may not be used; None when it may, or when nothing is where it leads.

        Of what lies outside nothing is told, not even whether it is there.
        """
        try:
            real = Path(path).resolve()
        except (OSError, RuntimeError, ValueError):  # links in a circle; a NUL
            return "it leads nowhere"
        if (why := self._why_outside(path, real)) is not None:
            return why
        try:
            mode = real.stat().st_mode
        except OSError:
            return None
        return self._why_not(path, real, mode)

    def open(self, path: str, flags: int, role: str) -> int:
        """Return a descriptor of a file that may be used. Never waits for a pipe or a terminal.

        Args:
            path: the file.
            flags: as open(2) takes them.
            role: what it is, for the error text.

        Raises:
            BadInput: it may not be used.
            Broken: it cannot be opened.
        """
        if (why := self.why_not(path)) is not None:
            raise _refused(role, path, why)
        try:
            real = Path(path).resolve(strict=True)
            why = self._why_not(path, real, real.stat().st_mode)
            if why is None:
                fd = os.open(real, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
                why = self._why_not_opened(fd, path, real)
                if why is None:
                    return fd
                os.close(fd)
        except OSError as error:
            fix = "check that the file exists on this host and that the agent may open it"
            if flags & os.O_DIRECT and Path(path).exists():
                fix = "check the permissions, and that its file system knows O_DIRECT, which a guest that moves needs"
            raise Broken(f"{role} {path} cannot be opened: {error.strerror}", fix=fix) from error
        raise _refused(role, path, why)

    def _why_not_opened(self, fd: int, path: str, real: Path) -> str | None:
        """Look again at what was really opened: somebody may have put something else there meanwhile."""
        if Path(f"/proc/self/fd/{fd}").readlink() != real:
            return "it changed while it was opened"
        os.set_blocking(fd, True)
        return self._why_not(path, real, os.fstat(fd).st_mode)

    def _why_not(self, path: str, real: Path, mode: int) -> str | None:
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return "it is neither a file nor a block device"
        if stat.S_ISBLK(mode) and self._holds_name(path):
            return None
        return self._why_outside(path, real, by_name=False)

    def _why_outside(self, path: str, real: Path, *, by_name: bool = True) -> str | None:
        if self._holds(real) or (by_name and self._holds_name(path)):
            return None
        is_ours = self._holds(Path(os.path.normpath(path)))  # else where it leads is nobody's business
        where = f" (it is {real})" if is_ours and str(real) != path else ""
        allowed = ", ".join(map(str, self.allowed)) or "none"
        return f"it is not below a directory that guests may use{where}; image_dirs of this host: {allowed}"

    def _holds_name(self, path: str) -> bool:
        return _DEV in Path(path).parents and self._holds(Path(os.path.normpath(path)))

    def _holds(self, path: Path) -> bool:
        deepest = max((_depth(path, directory) for directory in self.allowed), default=-1)
        return deepest > max((_depth(path, directory) for directory in self.private), default=-1)


def image_dirs(allowed: Sequence[Path], private: Sequence[Path]) -> ImageDirs:
    """Return the rule for directories as a configuration names them; links in their names are followed once, now."""
    return ImageDirs(tuple(_real(one) for one in allowed), tuple(_real(one) for one in private))


def _real(path: Path) -> Path:
    # Below /dev the names themselves count: what they lead to changes with each start of the host.
    return path if _DEV in path.parents else path.resolve()


def _depth(path: Path, directory: Path) -> int:
    """Return how deep a directory is that holds the path, -1 when it does not."""
    return len(directory.parts) if directory in path.parents else -1


def _refused(role: str, path: str, why: str) -> BadInput:
    return BadInput(
        f"{role} {path} may not be used: {why}", fix="move the file, or add its directory to image_dirs in agent.toml"
    )

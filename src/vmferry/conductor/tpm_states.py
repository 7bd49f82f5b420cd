"""Where the states of this host's TPMs are: one directory per guest that has a row here, and gone with the row.

A TPM that was set back to an older state accepts what it has refused since (a counter, a revoked key), so no old state
may ever be started by accident: what comes with a guest, or begins with it, gets a new directory. A state is removed
before its row, so that none is left without one whenever an agent is killed.
"""

from __future__ import annotations

import os
import pathlib
import shutil

from vmferry.core.errors import BadInput, Broken, Refused
from vmferry.core.ids import GuestName, is_name

#: What an emulator writes before its guest first runs. Source: swtpm 0.7.1, swtpm_nvstore_dir.c
_PERMANENT = "tpm2-00.permall"


class TpmStates:
    """The directories of the states.

    Args:
        directory: the agent's own, into which nobody else may look.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory

    def path(self, name: GuestName) -> pathlib.Path:
        """Return where a guest's state is; never outside of the directory, whoever named the guest.

        Raises:
            BadInput: that is no name.
        """
        if not is_name(name):
            raise BadInput(f"{name[:80]!r} cannot be the name of a guest")
        return self._directory / name

    def check_free(self, name: GuestName) -> None:
        """Check that a new guest finds nothing here: what has no row any more was not forgotten by an agent.

        Raises:
            Refused: the journal was lost or set back; all keys of an earlier guest may be in there.
        """
        if self.path(name).exists():
            raise Refused(
                f"the state of an earlier guest's TPM is in {self.path(name)}, of which the journal knows nothing",
                fix="bring the journal back; or move that directory away, if nobody needs its keys",
            )

    def renew(self, name: GuestName, uid: int | None) -> None:
        """Make an empty directory for a guest that begins or comes here; whatever is there goes first.

        Raises:
            Broken: it cannot be made.
        """
        path = self.path(name)
        try:
            if path.exists():
                shutil.rmtree(path)
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            if uid is not None:
                os.chown(path, uid, uid)
        except OSError as error:
            raise Broken(f"state of a TPM cannot be kept in {path}: {error.strerror}", fix="make room there") from error

    def check(self, name: GuestName) -> None:
        """Check that a guest which ran here finds its state again: with another TPM it would lose all of its keys.

        Raises:
            Broken: it is gone.
        """
        if not (self.path(name) / _PERMANENT).is_file():
            raise Broken(
                f"state of guest {name}'s TPM is not in {self.path(name)}; it would start with a new and empty one",
                fix=f"bring it back; or give it a new one: `vmferry guest remove {name}`, then `vmferry guest run`",
            )

    def flush(self, name: GuestName) -> None:
        """Have a state outlive a loss of power: an emulator renames what it wrote into place, and flushes nothing.

        Raises:
            OSError: it cannot be written.
        """
        for path in (*self.path(name).iterdir(), self.path(name)):
            # The directory is the emulator's: nothing in it is followed or waited for.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def remove(self, name: GuestName) -> None:
        """Remove a state for good. Idempotent."""
        shutil.rmtree(self.path(name), ignore_errors=True)

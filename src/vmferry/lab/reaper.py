"""Runs a command and takes note of the end of every process that it leaves behind, at once.

    python -m vmferry.lab.reaper COMMAND [ARGUMENT ...]

libvirtd starts a QEMU that detaches itself, and to see it end asks every 200 ms whether its pid is still there. What
has ended is there until its parent takes note; a detached process's parent is the machine's first one, and that of a
container may come to it only every second or so: then libvirt waits for nothing, and its moves look slower than they
are.

Source: prctl(2), PR_SET_CHILD_SUBREAPER; libvirt src/util/virprocess.c (virProcessKillPainfullyDelay).
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h


def main() -> None:
    """Run the command, and end when neither it nor anything that it left behind runs any more.

    How the command itself ended is said at once, when it did not end well: what it left behind may run for long.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    first = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    code = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            sys.exit(code)
        if pid == first:
            code = os.waitstatus_to_exitcode(status)
            if code:
                how = f"exit code {code}" if code > 0 else f"signal {-code}"
                print(f"The command ended with {how}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

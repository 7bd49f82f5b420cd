"""What a command leaves behind is buried at once, and waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_process_that_detached_itself_is_no_zombie(tmp_path: Path) -> None:
    """Its pid is gone with it, while the command still runs; the command's exit code is passed on."""
    pid, script = tmp_path / "pid", tmp_path / "script"
    script.write_text(
        f'sh -c "sleep 60 & echo \\$! > {pid}"\n'
        f'read left < "{pid}"\n'
        'test "$(cut -d " " -f 4 "/proc/$left/stat")" = "$PPID" || exit 5\n'  # its parent is the reaper
        'kill "$left"\n'
        'while kill -0 "$left" 2>/dev/null; do sleep 0.05; done\n'
        "exit 3\n",
        "utf-8",
    )
    ran = subprocess.run([sys.executable, "-m", "vmferry.lab.reaper", "sh", str(script)], timeout=60, check=False)
    assert ran.returncode == 3


def test_it_ends_with_the_last_of_them(tmp_path: Path) -> None:
    """A daemon that was killed leaves QEMUs that go on."""
    done = tmp_path / "done"
    script = f"(sleep 0.5; echo done > {done}) & exit 4"
    ran = subprocess.run([sys.executable, "-m", "vmferry.lab.reaper", "sh", "-c", script], timeout=60, check=False)
    assert (ran.returncode, done.read_text()) == (4, "done\n")

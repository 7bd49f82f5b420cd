"""What a command leaves behind is buried at once, and waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_REAPED = (sys.executable, "-m", "vmferry.lab.reaper")


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
    ran = subprocess.run([*_REAPED, "sh", str(script)], timeout=60, check=False)
    assert ran.returncode == 3


def test_it_ends_with_the_last_of_them(tmp_path: Path) -> None:
    """A daemon that was killed leaves QEMUs that go on."""
    done = tmp_path / "done"
    script = f"(sleep 0.5; echo done > {done}) & exit 4"
    ran = subprocess.run([*_REAPED, "sh", "-c", script], timeout=60, check=False, capture_output=True, text=True)
    assert (ran.returncode, done.read_text()) == (4, "done\n")
    assert ran.stderr == "The command ended with exit code 4\n"


def test_it_says_which_signal_ended_the_command() -> None:
    """At once, whatever still runs."""
    script = "exec 3<&0; (read left <&3) & kill -SEGV $$"
    command = [*_REAPED, "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reaper:
        assert reaper.stderr is not None
        assert reaper.stdin is not None
        assert reaper.stderr.readline() == "The command ended with signal 11\n"
        assert reaper.poll() is None
        reaper.stdin.close()
        assert reaper.wait(60) == -11 % 256

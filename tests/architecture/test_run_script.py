"""`./run`: wrong use, and what it says when the machine lacks something. Nothing is installed here."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "run"
#: What everybody needs, and what tests and benches need beside it.
PACKAGES = " ".join(re.findall(r'\bpackages="(?:\$packages )?([^"]*)"', RUN.read_text(encoding="utf-8"))).split()
COREUTILS = ("cat", "date", "dirname", "flock", "mktemp", "readlink", "rm", "sha256sum", "tail", "basename", "env")


class Machine:
    """A machine made of a PATH: real small tools and fake ones that record how they were called."""

    def __init__(self, directory: Path) -> None:
        self.clone = directory / "clone"
        self.bin = directory / "bin"
        self.calls = directory / "calls"
        for made in (self.clone, self.bin):
            made.mkdir()
        self.calls.touch()
        shutil.copy(RUN, self.clone / "run")
        # the machine's own directories would bring the real tools back
        script = (self.clone / "run").read_text(encoding="utf-8")
        (self.clone / "run").write_text(script.replace("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin\n", ""))
        for name in ("requirements-dev.lock", "requirements-libvirt.lock", "pyproject.toml"):
            (self.clone / name).write_text("")
        for name in COREUTILS:
            (self.bin / name).symlink_to(str(shutil.which(name)))

    def tool(self, name: str, text: str) -> None:
        """Put a fake tool into PATH; it records its arguments, then does what the text says."""
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.calls}\n{text}\n')
        path.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the clone's ./run."""
        return subprocess.run(
            ["/bin/sh", str(self.clone / "run"), *arguments],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self) -> str:
        """Return the recorded calls, one a line."""
        return self.calls.read_text(encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Debian with every package but cpio, whose user is not root."""
    made = Machine(tmp_path)
    assert {"cpio", "libvirt-daemon"} <= {*PACKAGES}
    rows = "\n".join(f"installed {name}" for name in PACKAGES if name != "cpio")
    made.tool("dpkg-query", f"cat <<'END'\n{rows}\nEND\nexit 1")
    made.tool("id", "echo 1000")
    return made


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--help"], ["demo "]])
def test_wrong_use_gets_usage_and_touches_nothing(machine: Machine, arguments: list[str]) -> None:
    """An unknown subcommand prints what there is, ends with 2, and looks at nothing."""
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ./run demo")
    assert machine.called() == ""


def test_without_root_and_sudo_the_command_to_run_is_said(machine: Machine) -> None:
    """A user without the right to install is told what to run as root."""
    machine.tool("apt-get", "exit 0")
    done = machine.run("setup")
    assert done.returncode == 1
    assert "you are not root; run as root: apt-get install cpio" in done.stderr
    assert "apt-get" not in machine.called()


def test_only_what_is_missing_is_installed_and_a_failure_is_shown(machine: Machine) -> None:
    """Through sudo apt-get is asked for the one missing package; its last words reach the user."""
    machine.tool("sudo", '"$@"')
    machine.tool("apt-get", 'case "$*" in *install*) echo "E: no space left"; exit 100 ;; esac')
    done = machine.run("setup")
    assert done.returncode == 1
    assert re.search(r"^apt-get .*install cpio$", machine.called(), re.MULTILINE)
    assert "E: no space left" in done.stderr
    assert "make `apt-get install cpio` work, then try again" in done.stderr


def test_complete_machine_asks_for_no_rights(machine: Machine) -> None:
    """With every package there neither sudo nor apt-get is called; an unfit Python is said with its remedy."""
    rows = "\n".join(f"installed {name}" for name in PACKAGES)
    machine.tool("dpkg-query", f"cat <<'END'\n{rows}\nEND")
    machine.tool("sudo", "exit 1")
    machine.tool("apt-get", "exit 1")
    machine.tool("python3", "exit 1")
    script = (machine.clone / "run").read_text(encoding="utf-8")
    (machine.clone / "run").write_text(script.replace("in python3 /usr/bin/python3", "in python3"))
    done = machine.run("setup")
    assert done.returncode == 1
    assert "no Python 3.11 or newer with venv; install python3 and python3-venv" in done.stderr
    assert "sudo" not in machine.called()
    assert "apt-get" not in machine.called()


def test_another_system_is_refused_by_name(machine: Machine) -> None:
    """Without dpkg the message says which systems are supported."""
    (machine.bin / "dpkg-query").unlink()
    done = machine.run("setup")
    assert done.returncode == 1
    assert "needs Debian 12 or 13" in done.stderr

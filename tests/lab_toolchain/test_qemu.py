"""Both QEMU versions on this machine: found, remembered, refused when broken."""

import os
import subprocess
from pathlib import Path

import pytest

from vmferry.core.errors import Broken, NotFound
from vmferry.lab.toolchain import qemu, unpack
from vmferry.lab.toolchain.qemu import WANTED_VERSIONS, find_qemu, find_qemus
from vmferry.lab.toolchain.verify import check_starts, has_answered, read_version

ANSWER = '{"return": {"qemu": {"micro": 2, "minor": 0, "major": 10}}}'
GOOD = f"""#!/bin/sh
case "$*" in
    *--version*) echo 'QEMU emulator version 10.0.2 (Debian)' ;;
    *) cat >/dev/null; echo '{ANSWER}' ;;
esac
echo "$*" >>"$0.calls"
"""


def program(directory: Path, text: str) -> Path:
    """Return a program with this text."""
    path = directory / "qemu-system-x86_64"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def lonely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose only QEMU is the program of that name in the returned directory, if a test puts one there."""
    monkeypatch.setenv("VMFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(qemu, "INSTALLED", tmp_path / "qemu-system-x86_64")
    return tmp_path


def test_a_working_program_is_found_and_started_once(lonely: Path) -> None:
    """A verdict is remembered: the second look starts nothing."""
    path = program(lonely, GOOD)
    first, second = find_qemus(), find_qemus()
    assert [binary.version for binary in first] == [(10, 0, 2)]
    assert second == first
    assert len((path.parent / f"{path.name}.calls").read_text(encoding="utf-8").splitlines()) == 2


def test_a_changed_program_is_looked_at_again(lonely: Path) -> None:
    """An upgrade in place is noticed: the verdict belongs to the file that was run."""
    program(lonely, GOOD)
    find_qemus()
    program(lonely, GOOD.replace("10.0.2", "10.0.11"))
    assert [binary.version for binary in find_qemus()] == [(10, 0, 11)]


def test_damaged_memory_of_verdicts_is_ignored(lonely: Path) -> None:
    """A verdict file that is not ours costs a new look, never an error."""
    program(lonely, GOOD)
    find_qemus()
    for text in ("", "{", "[]", '{"x": 1}', '{"x": {"mtime_ns": 1}}'):
        (lonely / "cache/qemu/verified.json").write_text(text, encoding="utf-8")
        assert [binary.version for binary in find_qemus()] == [(10, 0, 2)]


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 127\n", "#!/bin/sh\necho nonsense\n", "not a program"])
def test_a_broken_program_is_not_offered(lonely: Path, text: str) -> None:
    """A QEMU that does not start is left out, and asking for it says how to get one."""
    program(lonely, text)
    assert find_qemus() == []
    with pytest.raises(NotFound, match="no QEMU 10.0 on this machine.*setup"):
        find_qemu(10, 0)


def test_a_program_that_dies_after_its_version_is_refused(tmp_path: Path) -> None:
    """A version alone proves nothing: QEMU must start a machine and answer."""
    path = program(tmp_path, "#!/bin/sh\ncat >/dev/null\necho 'could not load PC BIOS' >&2\nexit 1\n")
    with pytest.raises(Broken, match="exit code 1.*could not load PC BIOS"):
        check_starts([str(path)], {})


@pytest.mark.parametrize(("text", "answered"), [("", False), ('{"return": {}}', False), (ANSWER, True)])
def test_only_the_answer_to_query_version_counts(text: str, answered: bool) -> None:
    """A greeting or an empty return is no proof that QMP works."""
    assert has_answered(text) is answered


def test_a_failed_fetch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the packages cannot be had, the half-made directory is removed."""

    class Unreachable:
        def download(self, packages: tuple[str, ...], suite: str) -> list[Path]:
            (tmp_path / "root").mkdir()
            raise Broken(f"no {packages[0]} in {suite}")

    with pytest.raises(Broken, match="no qemu-system-x86 in bookworm"):
        unpack.fetch_qemu(Unreachable(), "bookworm", tmp_path / "root")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.parametrize("wanted", WANTED_VERSIONS)
def test_both_versions_start_on_this_machine(wanted: tuple[int, int]) -> None:
    """QEMU 7.2 and 10.0 both start a machine with their own firmware and answer QMP."""
    binary = find_qemu(*wanted)
    assert read_version(binary.argv, binary.env) == binary.version
    check_starts(binary.argv, binary.env)
    assert (binary.data_dir / "keymaps").is_dir()


@pytest.mark.real
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("wanted", WANTED_VERSIONS)
def test_another_user_can_run_them(wanted: tuple[int, int]) -> None:
    """A guest's unprivileged uid reaches the program, its modules and its firmware."""
    binary = find_qemu(*wanted)
    done = subprocess.run(
        [*binary.argv, "-M", "none,accel=tcg", "-version"],
        env={**os.environ, **binary.env},
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr

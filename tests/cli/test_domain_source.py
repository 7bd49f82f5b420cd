"""Which host has a domain that is to move, and what makes it doubtful that what is there is the guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.cli.domain_moves import check
from vmferry.cli.domain_source import Seen, find_doubts, find_source
from vmferry.cli.libvirt_hosts import LibvirtHost
from vmferry.cli.libvirt_records import MoveRecord, find_record, steering
from vmferry.core.errors import NotFound
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.standing import ABSENT, Run, Standing

RECORD = MoveRecord("web-7", "host-a", "host-b")
SILENT = ("libvirt at qemu+ssh://host-c/system cannot be reached",)
RUNS = Standing(Run.RUNS, says="running (booted)")
STANDS = Standing(Run.STANDS, says="paused (migration)")
PAUSED = Standing(Run.PAUSED, says="paused (user)")
OFF = Standing(Run.OFF, says="shutoff (shutdown)")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator of whom nothing is known."""
    monkeypatch.setenv("VMFERRY_CONFIG", str(tmp_path / "vmferry"))
    return tmp_path / "vmferry"


def doubts(here: Standing, there: Standing = ABSENT, silent: tuple[str, ...] = ()) -> dict[str, str]:
    """Return codes, each with what it says and its fix."""
    found = find_doubts("web-7", Seen("host-a", {"host-a": here, "host-b": there}, silent))
    return {blocker.code: f"{blocker.what}; {blocker.fix}" for blocker in found}


@pytest.mark.parametrize("silent", [(), SILENT])
def test_a_guest_that_runs_on_one_host_is_not_doubted(silent: tuple[str, ...]) -> None:
    """Whatever host is down that has nothing to do with it."""
    assert doubts(RUNS, OFF, silent) == {}


def test_one_that_a_person_paused_is_doubted_only_where_another_host_may_run_it() -> None:
    """It moves, and is paused there."""
    assert doubts(PAUSED) == {}
    told = doubts(PAUSED, silent=SILENT)
    assert set(told) == {"domain.host-silent"}
    assert "paused (user)" in told["domain.host-silent"]
    assert SILENT[0] in told["domain.host-silent"]


@pytest.mark.parametrize("run", [Run.STANDS, Run.LEFT, Run.SPLIT])
def test_what_a_move_has_paused_does_not_move_again(run: Run) -> None:
    """It may be an old copy."""
    told = doubts(Standing(run, says="paused (migration)"))
    assert set(told) == {"domain.mid-move"}
    assert "paused (migration) on host-a" in told["domain.mid-move"]
    assert "vmferry recover web-7" in told["domain.mid-move"]


def test_all_of_it_is_told_at_once() -> None:
    """A move that nobody brought to its end, a copy that it left, a host where it runs."""
    with steering(RECORD):
        assert "domain.move-open" not in doubts(RUNS)  # who steers it has it locked
    told = doubts(STANDS, RUNS)
    assert set(told) == {"domain.move-open", "domain.mid-move", "domain.twice"}
    assert "from host-a to host-b" in told["domain.move-open"]
    assert "host-a (paused (migration)), host-b (running (booted))" in told["domain.twice"]
    assert set(doubts(STANDS, silent=SILENT)) == {"domain.move-open", "domain.mid-move", "domain.host-silent"}
    assert find_record("web-7") == RECORD


@pytest.mark.parametrize(
    ("uri", "expected"), [("qemu+ssh://a/system", set()), ("qemu+ssh://b/system", {"domain.twice"})]
)
def test_one_daemon_of_two_names_is_one_host(uri: str, expected: set[str]) -> None:
    """Its addresses for the other hosts may differ."""
    uris = {"host-a": "qemu+ssh://a/system", "host-b": uri}
    found = find_doubts("web-7", Seen("host-a", dict.fromkeys(uris, RUNS), (), uris))
    assert {blocker.code for blocker in found} == expected


def test_a_record_that_is_spoilt_is_one(directory: Path) -> None:
    """What it says is not known."""
    (directory / "moves").mkdir(parents=True)
    (directory / "moves" / "web-7.json").write_text("{")
    assert "is spoilt" in doubts(RUNS)["domain.move-open"]


def test_the_host_that_runs_it_is_the_source() -> None:
    """Not the first one that has a process; one that is off only where no silent host may run it."""
    assert find_source({"host-a": STANDS, "host-b": RUNS, "host-c": ABSENT}, is_complete=False) == "host-b"
    assert find_source({"host-a": OFF, "host-b": PAUSED}, is_complete=True) == "host-b"
    assert find_source({"host-a": OFF, "host-b": ABSENT}, is_complete=True) == "host-a"
    assert find_source({"host-a": OFF, "host-b": ABSENT}, is_complete=False) is None
    assert find_source({"host-a": ABSENT}, is_complete=True) is None


def hosts(*uris: str) -> dict[str, LibvirtHost]:
    """Return hosts at these addresses."""
    return {name: LibvirtHost(name, uri, uri) for name, uri in zip(("host-a", "host-b", "host-c"), uris, strict=False)}


def test_check_says_it_beside_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """On libvirt's imitation, with a move of its domain that is open."""

    async def stands(_: LibvirtConnection, name: str) -> Standing:
        return STANDS

    monkeypatch.setattr(LibvirtConnection, "standing", stands)
    with steering(MoveRecord("test", "host-a", "host-b")):
        pass
    reply = check(hosts("test:///default", "test:///default"), "test", "host-b", {"plain": True, "disks": ("vdx",)})
    codes = {blocker["code"] for blocker in reply["blockers"]}
    assert codes >= {"domain.move-open", "domain.mid-move", "disk.unknown"}
    assert reply["guarantee"] is None


def test_a_host_that_says_nothing_of_it_is_told(tmp_path: Path) -> None:
    """Nobody else has it."""
    away = f"test://{tmp_path}/none.xml"
    with pytest.raises(NotFound, match="no libvirt host runs a domain web-8; .*none.xml"):
        check(hosts(away, "test:///default"), "web-8", "host-b", {"plain": True})

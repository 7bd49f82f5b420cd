"""`recover`, `cancel` and `watch` of libvirt's domains, with libvirt's own imitation for daemons."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from vmferry.cli import domain_recovery, libvirt_records
from vmferry.cli.fleet import Answers
from vmferry.cli.libvirt_records import MoveRecord, find_record, forget, steering
from vmferry.cli.main import app
from vmferry.core.errors import BadInput, Denied, NotFound
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.libvirt import event_loop
from vmferry.libvirt.moves.standing import Job, Run, Standing

libvirt = pytest.importorskip("libvirt")

UUID, OTHER_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f", "7795eb01-f6a4-8304-79aa-97f2502e193f"
DOMAIN = (
    "<domain type='test'><name>web-7</name><uuid>{uuid}</uuid><memory>8192</memory><os><type>hvm</type></os></domain>"
)
RECORD = MoveRecord("web-7", "host-a", "host-b", {"plain": True}, ("LIVE", "PEER2PEER"))


@pytest.fixture(scope="module", autouse=True)
def running_event_loop() -> None:
    """Have libvirt's loop running before a test looks for what it leaves behind: it never ends."""
    event_loop.ensure_running(libvirt)
    libvirt.openReadOnly("test:///default").close()


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator without a fleet."""
    monkeypatch.setenv("VMFERRY_CONFIG", str(tmp_path / "vmferry"))
    return tmp_path / "vmferry"


def host(directory: Path, name: str, uuid: str | None) -> None:
    """Let the operator know a host on which web-7 runs with this UUID, or on which it is not."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.xml"
    file.write_text(f"<node>{'' if uuid is None else DOMAIN.format(uuid=uuid)}</node>")
    with (directory / "libvirt.toml").open("a") as known:
        known.write(f'[{name}]\nuri = "test://{file}"\npeer_uri = "test://{file}"\n')


def run(*words: str) -> tuple[int, str]:
    """Run a command; returns its exit code and what it printed."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_move_that_is_over_is_told_and_forgotten(directory: Path) -> None:
    """The owner is what both say, and the record of a move whose end is known goes."""
    host(directory, "host-a", None)
    host(directory, "host-b", UUID)
    with steering(RECORD):
        pass
    code, said = run("recover", "web-7")
    assert code == 0
    assert re.match(
        r"web-7 \(host-a and host-b\): it runs at the destination alone \(host-a says no such domain; host-b says"
        r" running \(\S+\)\); done: nothing; owner: host-b\n$",
        said,
    ), said
    assert find_record("web-7") is None


def test_all_moves_of_this_operator_are_recovered(directory: Path) -> None:
    """Without a name it is every move of which a record is kept."""
    host(directory, "host-a", UUID)
    host(directory, "host-b", None)
    with steering(RECORD):
        pass
    code, said = run("recover", "--json")
    (finding,) = json.loads(said)["findings"]
    assert (code, finding["guest"], finding["owner"], finding["verdict"]) == (0, "web-7", "host-a", "stayed")


def test_a_domain_that_runs_twice_is_told_and_not_touched(directory: Path) -> None:
    """With what a person has to do, and an exit code of its own; the record stays."""
    host(directory, "host-a", UUID)
    host(directory, "host-b", UUID)
    with steering(RECORD):
        pass
    code, said = run("recover", "web-7")
    assert code == 9
    assert "it runs on both hosts" in said
    assert "done: nothing; owner: not known\n  suspend one of them now" in said
    assert find_record("web-7") == RECORD


def test_two_domains_of_one_name_are_not_one(directory: Path) -> None:
    """They are told as two, whatever they do."""
    host(directory, "host-a", UUID)
    host(directory, "host-b", OTHER_UUID)
    code, said = run("recover", "web-7")
    assert (code, "different domains of this name" in said) == (9, True)


def test_a_daemon_that_does_not_answer_is_told(directory: Path) -> None:
    """It may run there: held, with why there is no answer, and what to do."""
    host(directory, "host-a", UUID)
    host(directory, "host-b", None)
    (directory / "host-b.xml").unlink()
    with steering(RECORD):
        pass
    code, said = run("recover", "web-7")
    assert code == 9
    assert "the destination's libvirt does not answer" in said
    assert "host-b.xml" in said
    assert "make libvirtd there answer" in said


def test_without_a_record_both_hosts_are_found(directory: Path) -> None:
    """Somebody else began the move: it is told all the same."""
    host(directory, "host-a", None)
    host(directory, "host-b", UUID)
    code, said = run("recover", "web-7")
    assert (code, "owner: host-b" in said) == (0, True), said


def test_a_move_that_another_process_steers_is_left_to_it(directory: Path) -> None:
    """Two would give libvirt orders that contradict each other."""
    host(directory, "host-a", UUID)
    host(directory, "host-b", None)
    with steering(RECORD):
        code, said = run("recover", "web-7")
        assert (code, "another vmferry steers it" in said) == (0, True)
    assert find_record("web-7") == RECORD


async def test_pages_follow_again_when_the_command_that_held_them_back_has_died() -> None:
    """Only of a guest that has left, in a move of this operator's; as fast as was asked for."""
    limits: list[BytesPerSecond | None] = []

    class Source:
        run = Run.LEFT

        async def standing(self, _name: str) -> Standing:
            return Standing(self.run, Job.OUT)

        async def set_postcopy_bandwidth(self, _name: str, limit: BytesPerSecond | None) -> None:
            limits.append(limit)

    async def hasten(record: MoveRecord | None, source: Source) -> None:
        there = SimpleNamespace(peer_uri="qemu+ssh://host-b/system")
        scene = SimpleNamespace(
            case=SimpleNamespace(domain="web-7"), record=record, source=source, hosts=(there, there)
        )
        await domain_recovery._hasten(scene)  # type: ignore[arg-type]  # as much of a scene as it needs

    source = Source()
    await hasten(RECORD, source)
    await hasten(replace(RECORD, parameters={"bandwidth.postcopy": 20}), source)
    await hasten(None, source)  # whoever began it may have limited it
    source.run = Run.RUNS
    await hasten(RECORD, source)
    assert limits == [None, 20 * MIB]


@pytest.mark.parametrize("command", ["cancel", "watch"])
def test_what_does_not_move_is_not_given_up(directory: Path, command: str) -> None:
    """It is told so, with what tells more."""
    host(directory, "host-a", UUID)
    host(directory, "host-b", None)
    with pytest.raises(NotFound, match="no host moves a guest or domain web-7; `vmferry recover web-7`"):
        run(command, "web-7")


def test_a_host_that_was_removed_is_missed(directory: Path) -> None:
    """Its side of the move cannot be looked at: that is said, and nothing done."""
    host(directory, "host-a", UUID)
    with steering(RECORD):
        pass
    code, said = run("recover", "web-7")
    assert (code, find_record("web-7")) == (9, RECORD)
    assert "web-7 was to move from host-a to host-b; host-b is not known here" in said
    assert "done: nothing; owner: not known\n  add it again: vmferry host add" in said
    with pytest.raises(BadInput, match="host-b is not known here"):
        run("watch", "web-7")


def test_without_any_host_a_record_is_told(directory: Path) -> None:
    """A guest is in doubt: it is not nothing."""
    with steering(RECORD):
        pass
    code, said = run("recover")
    assert (code, "host-a, host-b is not known here" in said) == (9, True), said


def test_one_record_does_not_hide_the_others(directory: Path) -> None:
    """A spoilt one, and one of a host that is gone, are told beside the rest, each with what to do."""
    host(directory, "host-a", None)
    host(directory, "host-b", UUID)
    with steering(MoveRecord("db-1", "host-a", "host-c")), steering(RECORD):
        pass
    (directory / "moves" / "app-1.json").write_text("{")
    code, said = run("recover", "--json")
    findings = {finding["guest"]: finding for finding in json.loads(said)["findings"]}
    assert (code, sorted(findings)) == (9, ["app-1", "db-1", "web-7"])
    assert "is spoilt" in findings["app-1"]["found"]
    assert "then remove the file" in findings["app-1"]["fix"]
    assert "host-c is not known here" in findings["db-1"]["found"]
    assert [findings[name]["owner"] for name in ("app-1", "db-1", "web-7")] == [None, None, "host-b"]


def test_the_fleet_is_asked_all_the_same(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that cannot be read says nothing about the agents' guests."""

    class Agents:
        def ask_all(self, path: str, *_: object, **__: object) -> Answers:
            assert path == "/v1/recover"
            row = {"guest": "vm-1", "found": "it runs", "done": "nothing", "owner": "host-x"}
            return Answers({"host-x": {"findings": [row]}})

    (directory / "moves").mkdir(parents=True)
    (directory / "moves" / "web-7.json").write_text("{")
    monkeypatch.setattr("vmferry.cli.recovery.has_fleet", lambda: True)
    monkeypatch.setattr("vmferry.cli.recovery.open_fleet", Agents)
    code, said = run("recover")
    assert code == 9
    assert "vm-1 (host-x): it runs" in said
    assert "record of the last move of web-7" in said


def test_a_fleet_that_cannot_be_asked_hides_no_domain(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is told before that error."""
    host(directory, "host-a", None)
    host(directory, "host-b", UUID)
    with steering(RECORD):
        pass

    def expired() -> None:
        raise Denied("certificate has expired")

    monkeypatch.setattr("vmferry.cli.recovery.has_fleet", lambda: True)
    monkeypatch.setattr("vmferry.cli.recovery.open_fleet", expired)
    result = CliRunner().invoke(app, ["recover"])
    assert isinstance(result.exception, Denied)
    assert "owner: host-b" in result.output


def test_a_move_that_is_over_is_not_revived(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own process forgets it just before this one has its record."""
    host(directory, "host-a", UUID)
    host(directory, "host-b", UUID)
    with steering(RECORD):
        pass
    lock = libvirt_records._lock
    went: list[str] = []

    def late(file: int, guest: str) -> None:
        if not went:
            went.append(guest)
            forget(guest)
        lock(file, guest)

    monkeypatch.setattr(libvirt_records, "_lock", late)
    run("recover", "web-7")
    assert find_record("web-7") is None


def test_without_its_record_no_move_is_forgotten(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process begins a move while this one looks at a domain without one."""
    host(directory, "host-a", None)
    host(directory, "host-b", UUID)
    sides = domain_recovery._sides

    async def late(*words: Any) -> Any:
        with steering(RECORD):
            pass
        return await sides(*words)

    monkeypatch.setattr(domain_recovery, "_sides", late)
    assert run("recover", "web-7")[0] == 0
    assert find_record("web-7") == RECORD

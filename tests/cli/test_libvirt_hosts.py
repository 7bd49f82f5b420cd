"""Hosts of libvirt's in the operator's own list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vmferry.cli.libvirt_hosts import add_host, load_hosts
from vmferry.cli.libvirt_records import MoveRecord, steering
from vmferry.cli.main import app

HERE, THERE = "qemu+ssh://root@host-a/system", "qemu+tls://host-a.storage/system"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator without a fleet."""
    monkeypatch.setenv("VMFERRY_CONFIG", str(tmp_path / "vmferry"))
    return tmp_path / "vmferry"


def run(*words: str) -> tuple[int, str]:
    """Run a command; returns its exit code and what it printed, or its error."""
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output or str(result.exception)


def test_a_host_is_added_shown_and_forgotten(directory: Path) -> None:
    """Nothing but the operator's own list changes, which nobody else can read; no fleet is needed for it."""
    code, said = run("host", "add", "host-a", "--libvirt", HERE, "--peer-uri", THERE)
    assert (code, said) == (0, f"libvirt host host-a is at {HERE}; from other hosts at {THERE}\n")
    assert (directory / "libvirt.toml").stat().st_mode & 0o077 == 0
    assert HERE in run("host", "list")[1]
    assert json.loads(run("host", "list", "--json")[1])["libvirt"] == [
        {"name": "host-a", "uri": HERE, "peer_uri": THERE}
    ]
    assert run("host", "remove", "host-a") == (0, "libvirt host host-a is forgotten; its domains are as they were\n")
    assert load_hosts() == {}


def test_a_host_that_a_move_needs_stays() -> None:
    """Without it nobody could tell where the domain runs; one that never comes back goes by force."""
    for name in ("host-a", "host-b", "host-c"):
        add_host(name, HERE, None)
    with steering(MoveRecord("web-7", "host-a", "host-b")):
        pass
    for name in ("host-a", "host-b"):
        code, said = run("host", "remove", name)
        assert code != 0
        assert f"libvirt host {name} is needed to tell where web-7 runs" in said
        assert "`vmferry recover web-7` first" in said
    assert run("host", "remove", "host-c")[0] == 0
    assert run("host", "remove", "host-b", "--force")[0] == 0
    assert list(load_hosts()) == ["host-a"]


def test_one_address_is_enough() -> None:
    """Other hosts reach it as we do, unless it is said otherwise; a second time says anew where it is."""
    run("host", "add", "host-a", "--libvirt", HERE)
    assert load_hosts()["host-a"].peer_uri == HERE
    run("host", "add", "host-a", "--libvirt", THERE)
    assert load_hosts()["host-a"].uri == THERE
    assert len(load_hosts()) == 1


def test_a_lock_manager_is_what_its_operator_says(directory: Path) -> None:
    """Libvirt tells it to nobody; a word that is none is refused, also in the list."""
    code, said = run("host", "add", "host-a", "--libvirt", HERE, "--lock-manager", "lockd", "--json")
    assert (code, json.loads(said)["lock_manager"]) == (0, "lockd")
    assert load_hosts()["host-a"].lock_manager == "lockd"
    run("host", "add", "host-b", "--libvirt", HERE)
    assert load_hosts()["host-a"].lock_manager == "lockd"
    assert load_hosts()["host-b"].lock_manager is None
    code, said = run("host", "add", "host-b", "--libvirt", HERE, "--lock-manager", "padlock")
    assert (code != 0, "lockd, sanlock, none" in said) == (True, True)
    file = directory / "libvirt.toml"
    file.write_text(file.read_text().replace('"lockd"', "3"))
    assert "lock manager '3' of host host-a" in run("host", "list")[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("host-a", "--libvirt", "qemu+ext://host-a/system?command=/bin/sh"), "qemu+ext"),
        (("host-a", "--libvirt", "qemu+ssh://host-a/system?netcat=evil"), "netcat"),
        (("host-a", "--libvirt", HERE, "--peer-uri", "http://host-a"), "http"),
        (("Host A", "--libvirt", HERE), "host name"),
        (("host-a", "10.0.0.1", "--libvirt", HERE), "not both"),
        (("host-a",), "it is not said where"),
    ],
)
def test_what_is_none_is_refused(words: tuple[str, ...], told: str) -> None:
    """The reason is told, and the list stays as it was."""
    add_host("host-b", HERE, None)
    code, said = run("host", "add", *words)
    assert code != 0
    assert told in said
    assert list(load_hosts()) == ["host-b"]


@pytest.mark.parametrize(
    "text", ["host-a = 3", "[host-a]\nuri = 1", "[host-a", '[host-a]\nuri = "http://a"\npeer_uri = ""']
)
def test_a_list_that_is_spoilt_is_told(directory: Path, text: str) -> None:
    """It is not taken for an empty one."""
    directory.mkdir(parents=True)
    (directory / "libvirt.toml").write_text(text)
    code, said = run("host", "list")
    assert code != 0
    assert "libvirt" in said

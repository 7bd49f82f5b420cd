"""`guest`, `host list`, `recover` and `version` against fake agents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.cli.conftest import FakeFleet, Ran, guest_view

from vmferry import __version__
from vmferry.api.models import RunGuest
from vmferry.core.guest import KernelBoot
from vmferry.guestfile import load_guest_file

Vmferry = Callable[..., Ran]
GUEST_FILE = 'name = "web-7"\nmemory = "512 MiB"\n[boot]\nkernel = "/k"\n[[disk]]\nimage = "/d"\n[[nic]]\n'


@pytest.fixture
def guest_file(tmp_path: Path) -> str:
    """A good guest file."""
    path = tmp_path / "web-7.toml"
    path.write_text(GUEST_FILE)
    return str(path)


def test_guest_run_sends_the_spec_that_the_agent_reads(fleet: FakeFleet, vmferry: Vmferry, guest_file: str) -> None:
    """The body is what the agent's own strict model reads back as the very guest of the file."""
    fleet.answer("host-a", "POST", "/v1/guests", guest_view(), status=201)
    ran = vmferry("guest", "run", guest_file, "--on", "host-a")
    assert (ran.exit_code, ran.out) == (0, "guest web-7 runs on host-a\n")
    ((_, _, body),) = fleet.agents["host-a"].orders()
    read = TypeAdapter(RunGuest).validate_json(json.dumps(body))
    assert read.spec == load_guest_file(guest_file)
    assert isinstance(read.spec.boot, KernelBoot)


@pytest.mark.parametrize(
    "example", sorted((Path(__file__).parents[2] / "examples").glob("*.toml")), ids=lambda p: p.name
)
def test_every_example_survives_the_wire(fleet: FakeFleet, vmferry: Vmferry, example: Path) -> None:
    """Each way to boot and each device of the examples is read back by the agent's strict model as it was."""
    fleet.answer("host-a", "POST", "/v1/guests", guest_view(), status=201)
    assert vmferry("guest", "run", str(example), "--on", "host-a").exit_code == 0
    ((_, _, body),) = fleet.agents["host-a"].orders()
    assert TypeAdapter(RunGuest).validate_json(json.dumps(body)).spec == load_guest_file(str(example))


def test_a_bad_guest_file_asks_nobody(fleet: FakeFleet, vmferry: Vmferry, tmp_path: Path) -> None:
    """Mistakes are told with file and line, in JSON too, before any agent is asked."""
    path = tmp_path / "bad.toml"
    path.write_text(GUEST_FILE + "vcpu = 3\nbridge = 1\n")
    ran = vmferry("guest", "run", str(path), "--on", "host-a", "--json")
    assert ran.exit_code == 2
    assert f"{path}:8: nic[0].vcpu: unknown key" in ran.err
    assert [row["line"] for row in json.loads(ran.out)["problems"]] == [8, 9, 9]
    assert fleet.agents["host-a"].requests == []


def test_guest_list_shows_each_guest_once_at_its_owner(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """A guest that both hosts know after a move is one row: the newest epoch, at its owner."""
    left = guest_view(owner="host-b", epoch=2, run_state=None)
    here = guest_view(host="host-b", epoch=2)
    fleet.has_guests(host_a=[left, guest_view("db-1", busy_with="h-9")], host_b=[here])
    ran = vmferry("guest", "list")
    assert ran.exit_code == 0
    rows = [line.split() for line in ran.out.splitlines()[1:]]
    assert [row[:3] for row in rows] == [["db-1", "host-a", "running"], ["web-7", "host-b", "running"]]
    assert "busy: h-9" in ran.out


def test_a_host_that_does_not_answer_is_named(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """The others' guests are shown, the silent host is a warning, in JSON a key."""
    fleet.has_guests(host_a=[guest_view()])
    fleet.agents["host-b"].stop()
    ran = vmferry("guest", "list")
    assert ran.exit_code == 0
    assert "web-7" in ran.out
    assert "warning: host-b did not answer" in ran.err
    assert list(json.loads(vmferry("guest", "list", "--json").out)["silent"]) == ["host-b"]


def test_no_host_answers(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """When nobody answers the command fails with the first host's error and what to check."""
    for agent in fleet.agents.values():
        agent.stop()
    ran = vmferry("guest", "list")
    assert ran.exit_code == 7
    assert ran.err.startswith("error: Agent of host-a")


def test_an_unknown_guest_is_not_found_only_when_all_answered(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """With all hosts up it does not exist; with a silent host nobody can say that."""
    fleet.has_guests(host_a=[guest_view()])
    ran = vmferry("guest", "show", "nobody")
    assert ran.exit_code == 2
    assert "guest nobody is not known on any host (host-a, host-b)" in ran.err
    fleet.agents["host-b"].stop()
    ran = vmferry("guest", "show", "nobody")
    assert ran.exit_code == 7
    assert "make sure that host-b answers" in ran.err


def test_an_unknown_host_names_those_there_are(fleet: FakeFleet, vmferry: Vmferry, guest_file: str) -> None:
    """A host that is not in the fleet is refused with the list of hosts."""
    ran = vmferry("guest", "run", guest_file, "--on", "host-z")
    assert ran.exit_code == 2
    assert "host host-z is not in the fleet; hosts: host-a, host-b" in ran.err


def test_a_host_added_since_is_found_in_the_newest_fleet_document(
    fleet: FakeFleet, vmferry: Vmferry, guest_file: str
) -> None:
    """An unknown host makes the command fetch the newest signed document; a forged one changes nothing."""
    authority = fleet.authority
    membership = authority.membership()
    old = membership.host("host-b")
    signed = authority.publish(membership.without_host("host-b").with_host(_renamed(old, "host-c")))
    forged = {"document": signed.document, "signature": "AAAA"}
    fleet.answer("host-a", "GET", "/v1/membership", forged)
    assert "host-c is not in the fleet" in vmferry("guest", "run", guest_file, "--on", "host-c").err
    fleet.answer("host-a", "GET", "/v1/membership", {"document": signed.document, "signature": signed.signature})
    ran = vmferry("guest", "run", guest_file, "--on", "host-c")
    assert ran.exit_code == 4  # what answers there is host-b, which is not host-c: TLS says so


def _renamed(member: Any, name: str) -> Any:
    return type(member)(name, member.address, member.port, member.enrolment)


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (["start", "web-7"], "POST", "/v1/guests/web-7/start", {}),
        (["stop", "web-7"], "POST", "/v1/guests/web-7/stop", {"force": False, "time_limit_s": 60.0}),
        (
            ["stop", "web-7", "--force", "--time-limit", "2min"],
            *("POST", "/v1/guests/web-7/stop", {"force": True, "time_limit_s": 120.0}),
        ),
        (["pause", "web-7"], "POST", "/v1/guests/web-7/pause", {}),
        (["resume", "web-7"], "POST", "/v1/guests/web-7/resume", {}),
        (["remove", "web-7"], "DELETE", "/v1/guests/web-7", None),
        (
            ["attach", "web-7", "01:10.0", "pci_0000_01_10_2"],
            *("POST", "/v1/guests/web-7/attach", {"devices": ["0000:01:10.0", "0000:01:10.2"]}),
        ),
        (
            ["detach", "web-7", "01:10.0", "--within", "5s"],
            *("POST", "/v1/guests/web-7/detach", {"device": "0000:01:10.0", "time_limit_s": 5.0}),
        ),
    ],
)
def test_each_order_reaches_the_owner(
    fleet: FakeFleet, vmferry: Vmferry, arguments: list[str], method: str, path: str, body: object
) -> None:
    """An order goes to the guest's owner, once, with its body."""
    fleet.has_guests(host_a=[guest_view(owner="host-b", epoch=2)], host_b=[guest_view(host="host-b", epoch=2)])
    fleet.answer("host-b", method, path, guest_view(host="host-b"), status=204 if method == "DELETE" else 200)
    ran = vmferry("guest", *arguments)
    assert (ran.exit_code, ran.err) == (0, "")
    assert "host-b" in ran.out
    assert fleet.agents["host-b"].orders() == [(method, path, body)]
    assert fleet.agents["host-a"].orders() == []


@pytest.mark.parametrize(("devices", "words"), [([], "go (running)"), (["0000:01:10.0"], "waits for others of its")])
def test_a_device_that_waits_for_its_group_is_told(
    fleet: FakeFleet, vmferry: Vmferry, devices: list[str], words: str
) -> None:
    """It was let go, and is not the host's yet."""
    fleet.has_guests(host_a=[guest_view()])
    fleet.answer("host-a", "POST", "/v1/guests/web-7/detach", guest_view(devices=devices))
    assert words in vmferry("guest", "detach", "web-7", "01:10.0").out


def test_guest_show_prints_the_spec(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """Every key of the guest that is set is a line, in words and units of the guest file."""
    fleet.has_guests(host_a=[guest_view()])
    view = guest_view(macs=["52:54:00:00:00:07", "52:54:00:00:00:08"])
    fleet.answer("host-a", "GET", "/v1/guests/web-7", view)
    ran = vmferry("guest", "show", "web-7")
    shown = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert (shown["owner"], shown["memory"]) == ("host-a", "512.0 MiB")
    assert shown["macs"] == "52:54:00:00:00:07, 52:54:00:00:00:08"
    assert "busy_with" not in shown


def test_recover_asks_every_host(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """Findings of all hosts are told; exit code 9 while an owner is not known."""
    finding = {"guest": "web-7", "handover": "h-1", "found": "it runs here", "done": "nothing", "owner": "host-a"}
    fleet.answer("host-a", "POST", "/v1/recover", {"findings": [finding]})
    fleet.answer("host-b", "POST", "/v1/recover", {"findings": []})
    ran = vmferry("recover")
    assert (ran.exit_code, ran.err) == (0, "")
    assert "web-7 (host-a): it runs here; done: nothing; owner: host-a" in ran.out
    fleet.answer("host-b", "POST", "/v1/recover", {"findings": [{**finding, "owner": None}]})
    assert vmferry("recover", "web-7").exit_code == 9
    assert fleet.agents["host-b"].orders()[-1] == ("POST", "/v1/recover", {"guest": "web-7"})


def test_fenced_needs_a_host_that_does_not_answer(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """A host that answers is not off: the word is refused. When it is silent, all others are told."""
    fleet.answer("host-b", "GET", "/v1/host", {"name": "host-b"})
    fleet.answer("host-a", "POST", "/v1/recover/fenced", {"findings": []})
    ran = vmferry("recover", "--fenced", "host-b")
    assert ran.exit_code == 2
    assert "host host-b is not off: agent of host-b answers" in ran.err
    fleet.answer("host-b", "GET", "/v1/host", {"code": "denied", "what": "not your role"}, status=403)
    assert "host host-b is not off: not your role" in vmferry("recover", "--fenced", "host-b").err
    assert fleet.agents["host-a"].orders() == []
    fleet.agents["host-b"].stop()
    ran = vmferry("recover", "--fenced", "host-b")
    assert (ran.exit_code, ran.out) == (0, "nothing to recover\n")
    assert fleet.agents["host-a"].orders() == [("POST", "/v1/recover/fenced", {"host": "host-b"})]


def test_without_an_identity_the_way_to_one_is_told(
    vmferry: Vmferry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty configuration names the directory and the commands that make an identity."""
    monkeypatch.setenv("VMFERRY_CONFIG", str(tmp_path / "none"))
    ran = vmferry("guest", "list")
    assert ran.exit_code == 2
    assert str(tmp_path / "none") in ran.err
    assert "vmferry operator add" in ran.err


def test_version(vmferry: Vmferry) -> None:
    """The version is printed as text and as JSON."""
    assert vmferry("version").out == f"vmferry {__version__}\n"
    assert json.loads(vmferry("version", "--json").out) == {"version": __version__}


@pytest.mark.parametrize("arguments", [["fly"], ["guest", "run"], ["migrate", "web-7"], ["check", "a", "b", "c"]])
def test_bad_usage_exits_with_2(vmferry: Vmferry, arguments: list[str]) -> None:
    """An unknown command and missing or surplus arguments are told on standard error with exit code 2."""
    ran = vmferry(*arguments)
    assert (ran.exit_code, ran.out) == (2, "")
    assert "Usage:" in ran.err

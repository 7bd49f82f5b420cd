"""`ca`, `host` and `operator`: a fleet is made and changed by commands, on real directories."""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import FakeFleet, Ran

from vmferry.core.errors import Denied
from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority
from vmferry.pki.identity import IdentityDirectory

Vmferry = Callable[..., Ran]

HOST = {
    "name": "host-a",
    "agent_version": "0.1.0",
    "protocol": 1,
    "qemu": {"version": [10, 0, 2], "machines": ["pc-q35-7.2"], "cpu_models": ["qemu64"]},
    "acceleration": "tcg",
    "acceleration_reason": "no svm, no vmx",
    "acceleration_tag": "TCG",
    "memory_total_bytes": 8 * 2**30,
    "memory_free_bytes": 4 * 2**30,
    "bridges": ["br0"],
    "migration_ports_free": 64,
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for a new operator's identity."""
    monkeypatch.setenv("VMFERRY_CONFIG", str(tmp_path / "me"))
    return tmp_path


def test_ca_init_makes_the_fleet_and_its_first_operator(own: Path, vmferry: Vmferry) -> None:
    """One command makes CA and operator; a second one refuses and leaves both as they were."""
    ran = vmferry("ca", "init", "--ca-dir", str(own / "ca"), "--operator", "ada", "--lifetime", "1h")
    assert (ran.exit_code, ran.err) == (0, "")
    assert IdentityDirectory(own / "me").identity().name == "ada"
    membership = Authority.open(own / "ca").membership()
    assert (membership.lifetime_s, [member.name for member in membership.operators]) == (3600, ["ada"])
    before = (own / "me" / "identity.pem").read_bytes()
    assert vmferry("ca", "init", "--ca-dir", str(own / "ca")).exit_code == 2
    assert (own / "me" / "identity.pem").read_bytes() == before


def test_operators_are_added_listed_and_removed(own: Path, vmferry: Vmferry) -> None:
    """A new operator gets a directory of their own; the last who may change anything cannot be removed."""
    at = ["--ca-dir", str(own / "ca")]
    vmferry("ca", "init", *at)
    ran = vmferry("operator", "add", "eve", "--out", str(own / "eve"), *at)
    assert ran.exit_code == 0
    assert IdentityDirectory(own / "eve").identity().name == "eve"
    rows = json.loads(vmferry("operator", "list", "--json").out)["operators"]
    assert rows == [{"name": "admin", "role": "operate"}, {"name": "eve", "role": "read"}]
    assert vmferry("operator", "remove", "admin", *at).exit_code == 2
    assert vmferry("operator", "remove", "eve", *at).exit_code == 0
    assert "eve" not in vmferry("operator", "list").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["operator", "add", "eve", "--out", "eve", "--role", "root"], "read, operate"),
        (["host", "add", "host-a", "192.0.2.1"], "no enrolment code"),
        (["host", "add", "host-a", "192.0.2.1", "ABC"], "enrolment code"),
        (["host", "add", "Host_A", "192.0.2.1", "ABC"], "cannot be the name of a host"),
        (["host", "remove", "host-z"], "no host host-z"),
        (["ca", "init", "--lifetime", "90"], "--lifetime"),
    ],
)
def test_bad_input_changes_nothing(own: Path, vmferry: Vmferry, arguments: list[str], words: str) -> None:
    """A wrong role, code, name or lifetime is told with exit code 2, and the fleet document stays."""
    at = ["--ca-dir", str(own / "ca")]
    vmferry("ca", "init", *at)
    ran = vmferry(*arguments, *at)
    assert ran.exit_code == 2
    assert words in ran.err
    assert Authority.open(own / "ca").membership().version == 2


@pytest.mark.parametrize("source", ["file", "-"])
def test_a_code_comes_from_a_file(own: Path, vmferry: Vmferry, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """The enrolment code is taken from a file or from standard input, so that no list of processes shows it."""
    codes: list[str] = []

    def add_host(_name: str, _address: str, code: str, **_: object) -> None:
        codes.append(code)
        raise Denied("seen")

    monkeypatch.setattr("vmferry.api.fleet_commands.add_host", add_host)
    monkeypatch.setattr("sys.stdin", io.StringIO("ABC-DEF\n"))
    (own / "code").write_text("ABC-DEF\n")
    path = "-" if source == "-" else str(own / "code")
    assert vmferry("host", "add", "host-a", "192.0.2.1", "--code-file", path).exit_code == 4
    assert codes == ["ABC-DEF"]
    missing = vmferry("host", "add", "host-a", "192.0.2.1", "--code-file", str(own / "none"))
    assert (missing.exit_code, "cannot be read: No such file" in missing.err) == (2, True)


def test_host_list_shows_those_that_do_not_answer_too(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """Each host of the fleet is a row; a silent one says so and is a warning."""
    fleet.answer("host-a", "GET", "/v1/host", HOST)
    fleet.agents["host-b"].stop()
    ran = vmferry("host", "list")
    assert ran.exit_code == 0
    rows = {line.split()[0]: line for line in ran.out.splitlines()}
    assert "10.0.2" in rows["host-a"]
    assert "4.0 GiB" in rows["host-a"]
    assert "no answer" in rows["host-b"]
    assert "warning: host-b did not answer" in ran.err
    assert json.loads(vmferry("host", "list", "--json").out)["hosts"] == [HOST]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "lockspace fleet-1, host id 7, below /srv/nfs, /mnt"),
        ({"watchdog": False}, "lockspace fleet-1, host id 7, below /srv/nfs, /mnt; without a watchdog"),
        (
            {"problem": {"code": "disk.lease-unready", "what": "no daemon", "fix": "start it"}},
            "lockspace fleet-1, host id 7, below /srv/nfs, /mnt; none can be had now: no daemon; start it",
        ),
    ],
)
def test_host_show_says_how_leases_are_taken(
    fleet: FakeFleet, vmferry: Vmferry, changes: dict[str, object], told: str
) -> None:
    """Lockspace, host id and directories stand there, and what keeps guests from having leases."""
    leases = {"lockspace": "fleet-1", "host_id": 7, "image_dirs": ["/srv/nfs", "/mnt"], "watchdog": True}
    fleet.answer("host-a", "GET", "/v1/host", {**HOST, "disk_leases": {**leases, "problem": None, **changes}})
    assert told in " ".join(vmferry("host", "show", "host-a").out.split())
    fleet.answer("host-a", "GET", "/v1/host", {**HOST, "disk_leases": None})
    assert "disk leases" not in vmferry("host", "show", "host-a").out


def test_host_show_says_why_it_is_accelerated_so(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """The acceleration stands with its reason."""
    fleet.answer("host-a", "GET", "/v1/host", HOST)
    assert "TCG: no svm, no vmx" in vmferry("host", "show", "host-a").out


def test_host_remove_needs_no_answer_from_the_host(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """A host that is gone for good is removed; the others are told, and who could not be told is named."""
    fleet.has_guests()
    fleet.answer("host-a", "PUT", "/v1/membership", {}, status=204)
    fleet.agents["host-b"].stop()
    ran = vmferry("host", "remove", "host-b", "--ca-dir", str(fleet.authority.directory))
    assert ran.exit_code == 0
    assert "warning: host-b could not be told" in ran.err
    assert [member.name for member in fleet.authority.membership().hosts] == ["host-a"]
    assert [path for _, path, _ in fleet.agents["host-a"].orders()] == ["/v1/membership"]


def make_old(ca_dir: Path, identity: Path, days_left: int) -> None:
    """Let a fleet's CA certificate have so many days left, here and in an identity."""
    authority = Authority.open(ca_dir)
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(days=3650 - days_left, seconds=-60)
    pem = certs.dump_certificate(certs.make_ca(authority.key, begin, renewed=authority.certificate))
    for path in (ca_dir / "ca.pem", identity / "ca.pem"):
        path.write_bytes(pem)


@pytest.mark.parametrize(("days_left", "told"), [(366, ""), (364, "the fleet's CA certificate ends on")])
def test_the_end_of_the_ca_is_told_a_year_before(own: Path, vmferry: Vmferry, days_left: int, told: str) -> None:
    """The CA's end is shown; within its last year whoever looks is warned, and told what to do."""
    vmferry("ca", "init", "--ca-dir", str(own / "ca"))
    make_old(own / "ca", own / "me", days_left)
    ran = vmferry("ca", "show")
    assert ran.exit_code == 0
    assert f"{dt.datetime.now(dt.UTC) + dt.timedelta(days=days_left):%F}" in ran.out
    assert told in ran.err
    assert ("vmferry ca renew" in ran.err) is (ran.err != "") is bool(told)
    assert (json.loads(vmferry("ca", "show", "--json").out)["warning"] is None) is not bool(told)


def test_a_renewed_ca_and_the_old_one_believe_the_same(own: Path, vmferry: Vmferry) -> None:
    """After a renewal members with either certificate talk to each other, also those who join later."""
    ca_dir = own / "ca"
    vmferry("ca", "init", "--ca-dir", str(ca_dir))
    make_old(ca_dir, own / "me", 30)
    vmferry("operator", "add", "before", "--out", str(own / "before"), "--ca-dir", str(ca_dir))
    assert vmferry("ca", "renew", "--ca-dir", str(ca_dir)).exit_code == 0
    assert vmferry("ca", "show").err == ""
    vmferry("operator", "add", "after", "--out", str(own / "after"), "--ca-dir", str(ca_dir))
    before, after = IdentityDirectory(own / "before"), IdentityDirectory(own / "after")
    assert after.ca().not_valid_after_utc - before.ca().not_valid_after_utc > dt.timedelta(days=3600)
    for one, other in ((before, after), (after, before)):
        one.certificate().verify_directly_issued_by(other.ca())
        one.client_context()
        assert other.accept_membership(Authority.open(ca_dir).signed_membership()) in {True, False}
    with pytest.raises(Denied, match="not of this fleet"):
        before.replace_ca(certs.make_ca(certs.make_key(), dt.datetime.now(dt.UTC)))


@pytest.mark.usefixtures("own")
def test_ca_show_without_an_identity(vmferry: Vmferry) -> None:
    """Who has no identity is told how to get one, and of no option that the command does not have."""
    ran = vmferry("ca", "show")
    assert (ran.exit_code, "VMFERRY_CONFIG" in ran.err, "--ca-dir" in ran.err) == (2, True, False)

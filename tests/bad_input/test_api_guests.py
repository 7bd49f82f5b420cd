"""Guests in JSON written by hand, or by a peer that lies: refused by the guest file's rules, and nothing is touched."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError
from tests.agent_http.test_peers import make_reserve
from tests.qemu.test_command_line import BIOS, LINUX, make_frozen

from vmferry.agent.checking import Checking
from vmferry.agent.dispatch import load_body
from vmferry.agent.files import file_facts
from vmferry.agent.service import Service
from vmferry.agent.spec_rules import spec_complaints
from vmferry.api import models as m
from vmferry.api.bases import Request
from vmferry.core.errors import BadInput, Denied, Refused
from vmferry.core.guest import Disk, GuestSpec, HostDevice, IoPath, KernelBoot, NetworkKind, Nic, UefiBoot
from vmferry.core.ids import GuestName, GuestUuid, HandoverId, HostName
from vmferry.core.units import Bytes
from vmferry.guestfile import words
from vmferry.qemu.image_dirs import image_dirs

NAMES = ["/etc", "../web-8", "web-7\n", "", "Web", "a" * 64]
GOOD = replace(LINUX, cpu="qemu64", disks=(Disk("/shared/a"),))


def renamed(value: dict[str, Any], name: str) -> bytes:
    """Return a body with another guest's name in it, wherever it stands."""
    spec = value["spec"] if "spec" in value else value["guest"]["spec"]
    spec["name"] = name
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "good",
    [m.RunGuest(spec=BIOS), m.ProbeRequest(guest=make_frozen(BIOS)), make_reserve()],
    ids=["run", "probe", "reserve"],
)
def test_a_name_is_a_name_in_every_body(good: Request, name: str) -> None:
    """A guest's name that could be a path is refused where it comes in; the good one is not."""
    body = json.loads(good.model_dump_json())
    assert load_body(type(good), renamed(body, "web-7")) == good
    with pytest.raises(BadInput, match="a name is 1 to 63"):
        load_body(type(good), renamed(body, name))


@pytest.mark.parametrize("address", ["host-b", "192.0.2.1,ipv4=off", "192.0.2.1\n", "fe80::1%eth0", "unix:/x", ""])
def test_a_stream_goes_to_an_ip_address(address: str) -> None:
    """What a peer answers as address is part of an order to QEMU."""
    assert m.ReserveReply(address="2001:db8::2", port=1).address == "2001:db8::2"
    assert m.RejoinReply(state="x").address is None
    with pytest.raises(ValidationError):
        m.ReserveReply(address=address, port=1)
    with pytest.raises(ValidationError):
        m.RejoinReply(state="x", address=address, port=1)


FUNCTION = Nic(IoPath.SRIOV_VF, NetworkKind.NONE, physical_network="fabric")
BAD: dict[str, tuple[GuestSpec, str]] = {
    "relative kernel": (replace(GOOD, boot=KernelBoot("vmlinuz")), "boot.kernel"),
    "NUL in a path": (replace(GOOD, boot=KernelBoot("/k", "/i\0")), "boot.initrd"),
    "NUL in the command line": (replace(GOOD, boot=KernelBoot("/k", None, "a\0b")), "boot.cmdline"),
    "relative firmware": (replace(GOOD, boot=UefiBoot("code", "/v")), "boot.code"),
    "relative image": (replace(GOOD, disks=(Disk("a"),)), "disks[0].path"),
    "cached image": (replace(GOOD, disks=(Disk("/a", cache="writeback"),)), "disks[0].cache"),
    "bridge": (replace(GOOD, nics=(Nic(bridge="br0,x"),)), "nics[0].bridge"),
    "kernel's card without a bridge": (replace(GOOD, nics=(Nic(IoPath.VHOST),)), "nics[0].io_path"),
    "kernel's disk": (replace(GOOD, disks=(Disk("/a", io_path=IoPath.VHOST),)), "disks[0].io_path"),
    "function without a network": (replace(GOOD, nics=(Nic(IoPath.SRIOV_VF),)), "nics[0].io_path"),
    "five functions": (replace(GOOD, nics=(FUNCTION,) * 5), "nics, host_devices"),
    "function's network": (
        replace(GOOD, nics=(replace(FUNCTION, physical_network="a b"),)),
        "nics[0].physical_network",
    ),
    "function's VLAN": (replace(GOOD, nics=(replace(FUNCTION, vlan=4095),)), "nics[0].vlan"),
    "standby": (replace(GOOD, nics=(replace(FUNCTION, standby=IoPath.EMULATED),)), "nics[0].io_path"),
    "VLAN of no function": (replace(GOOD, nics=(Nic(vlan=7),)), "nics[0].io_path"),
    "host's device": (replace(GOOD, host_devices=(HostDevice("eth0"),)), "host_devices[0].device"),
    "five of the host's": (replace(GOOD, host_devices=(HostDevice("8086:10d3"),) * 5), "nics, host_devices"),
    "MAC": (replace(GOOD, nics=(Nic(mac="52:54:00:12:34:56\n"),)), "nics[0].mac"),
    "port": (replace(GOOD, nics=(Nic(forward_udp=((0, 7),)),)), "nics[0].forward_udp"),
    "CPU": (replace(GOOD, cpu="host"), "cpu"),
    "machine": (replace(GOOD, machine="q35"), "machine"),
    "memory": (replace(GOOD, memory_bytes=Bytes(1)), "memory_bytes"),
    "no CPU": (replace(GOOD, vcpus=0), "vcpus"),
    "name": (replace(GOOD, name=GuestName("/etc")), "name"),
    "UUID": (replace(GOOD, uuid=GuestUuid("web-7")), "uuid"),
    "echo": (replace(GOOD, echo="here"), "echo"),
}


@pytest.mark.parametrize(("spec", "key"), BAD.values(), ids=BAD)
async def test_the_guest_files_rules_hold_for_the_api(spec: GuestSpec, key: str) -> None:
    """Each is bad input that names the key, before any file, host or journal is looked at."""
    checking = Checking(*cast("Any", [None] * 6))
    with pytest.raises(BadInput) as caught:
        await checking.check_new(spec)
    assert f"{key} = " in caught.value.what
    assert spec_complaints(GOOD) == []


async def test_a_uuid_that_a_guest_here_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two guests of one UUID could never be on one host: the second is not started, and hears whose it is."""
    uuid = GuestUuid("6f1c1a1e-0000-4000-8000-000000000007")
    row = SimpleNamespace(guest=SimpleNamespace(uuid=uuid, spec=GOOD))
    guests = SimpleNamespace(journal=SimpleNamespace(guests=lambda: [row]))
    here = SimpleNamespace(offer=SimpleNamespace(name="host-a"))
    checking = Checking(*cast("Any", [guests, here, None, None, None, None]))
    monkeypatch.setattr(Checking, "_what_is_wrong", _nothing)
    with pytest.raises(BadInput, match=f"its UUID is guest {GOOD.name}'s"):
        await checking.check_new(replace(GOOD, name=GuestName("web-8"), uuid=uuid))
    await checking.check_new(replace(GOOD, name=GuestName("web-8")))


async def _nothing(checking: Checking, spec: GuestSpec) -> list[str]:
    return []


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (words.guest_name, "web-7"),
        (words.cpu, "qemu64"),
        (words.machine, "pc-q35-7.2"),
        (words.bridge, "br0"),
        (words.guest_uuid, "6f1c1a1e-0000-4000-8000-000000000007"),
        (words.mac, "52:54:00:12:34:56"),
    ],
)
def test_no_word_ends_with_a_newline(rule: Any, value: str) -> None:
    """What is a good word is none with a newline behind it."""
    assert rule(value) == value
    with pytest.raises(ValueError, match=r"\w"):
        rule(value + "\n")


@pytest.mark.parametrize("name", ["there", "missing", "folder", "missing/deep", "there/deep", "nul\0"])
def test_nothing_is_told_of_files_outside(tmp_path: Path, name: str) -> None:
    """Whether a file that guests may not have exists, and what it is, cannot be found out."""
    (tmp_path / "open").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "there").write_text("secret")
    rule = image_dirs((tmp_path / "open",), ())
    path = str(tmp_path / name)
    facts = file_facts(path, rule.why_not, Bytes(1 << 30))
    known = "it leads nowhere" if "\0" in name else "it is not below a directory that guests may use; image_dirs of"
    assert (facts.exists, facts.readable, facts.size_bytes, facts.sha256) == (False, False, 0, None)
    assert (facts.error or "").startswith(known)
    assert str(tmp_path / name) not in (facts.error or "")


def test_large_files_are_not_hashed(tmp_path: Path) -> None:
    """A kernel that no guest could load is not read."""
    (tmp_path / "disk").write_bytes(b"12345")
    rule = image_dirs((tmp_path,), ())
    assert file_facts(str(tmp_path / "disk"), rule.why_not, Bytes(5)).sha256 is not None
    assert file_facts(str(tmp_path / "disk"), rule.why_not, Bytes(4)).sha256 is None


def make_service(peer_of_row: str | None, bridges: list[str]) -> Service:
    """Return the service of host-b with a journal of one arrival, and bridges; nothing else of it may be used."""
    row = None if peer_of_row is None else SimpleNamespace(peer=peer_of_row)
    journal = SimpleNamespace(handover=lambda *_: row)
    host_view = SimpleNamespace(bridges=lambda: bridges, offer=SimpleNamespace(name="host-a"))
    checking = Checking(*cast("Any", [None, host_view, None, None, None, None]))
    rest = [None] * (len(dataclasses.fields(Service)) - 4)
    parts: Any = [SimpleNamespace(journal=journal), None, None, checking, *rest]
    return Service(*parts)


async def test_a_reservation_of_another_peer_is_not_answered() -> None:
    """Who names the hand-over of two others learns nothing about it."""
    with pytest.raises(Denied, match="not one with host host-b"):
        await make_service("host-c", ["br0"]).reserve(HostName("host-b"), HandoverId("h1"), make_reserve())


async def test_an_arrival_obeys_the_hosts_bridges() -> None:
    """A bridge that this host does not give to guests is refused, whatever the source has checked."""
    body = make_reserve().model_copy(update={"guest": make_frozen(LINUX)})
    with pytest.raises(Refused, match="bridge br0, which this host does not have or give"):
        await make_service(None, ["br7"]).reserve(HostName("host-b"), HandoverId("h1"), body)

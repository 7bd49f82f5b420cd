"""`import` and `export`: what is printed where, and that nothing is printed that is not whole."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from tests.cli.conftest import FakeFleet, Ran, guest_view

from vmferry.guestfile import load_guest_file
from vmferry.libvirt import read_domain

Vmferry = Callable[..., Ran]
GOLDEN = Path(__file__).parent / "golden"
DOMAINS = Path(__file__).parents[1] / "libvirt" / "domains"
ACCEPT = (
    "address,cdrom,channel,disk,features,graphics,input,interface,memballoon,pm,rng,sound,timer,topology,tpm,usb,video,"
    "watchdog"
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where the domains are, so that messages name them without a directory."""
    for source in DOMAINS.glob("*.xml"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)


def check_golden(name: str, text: str) -> None:
    """Compare with the golden file; UPDATE_GOLDEN=1 writes it."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_a_domain_is_printed_as_a_guest_file_and_what_is_left_out_beside_it(vmferry: Vmferry, tmp_path: Path) -> None:
    """The guest file is on standard output and nothing else; everything that the guest loses is on standard error."""
    ran = vmferry("import", "running.xml", "--accept", ACCEPT)
    assert ran.exit_code == 0
    check_golden("import.toml", ran.out)
    check_golden("import-left-out.txt", ran.err)
    written = tmp_path / "web-7.toml"
    written.write_text(ran.out)
    assert (
        load_guest_file(str(written))
        == read_domain((DOMAINS / "running.xml").read_bytes(), accept=frozenset(ACCEPT.split(","))).spec
    )


def test_a_refused_domain_prints_no_guest_file(vmferry: Vmferry) -> None:
    """Every reason with its line, and the option that accepts all of them; standard output stays empty."""
    ran = vmferry("import", "running.xml")
    assert (ran.exit_code, ran.out) == (2, "")
    check_golden("import-refused.txt", ran.err)
    assert f"--accept {ACCEPT}; " in ran.err


def test_a_domain_of_a_libvirt_is_asked_for(vmferry: Vmferry, tmp_path: Path) -> None:
    """The domain's own XML is read, here of libvirt's imitation; what it does not have is not found."""
    xml = (DOMAINS / "kernel.xml").read_text().partition("-->")[2]
    (tmp_path / "node.xml").write_text(f"<node>{xml}</node>")
    uri = f"test://{tmp_path}/node.xml"
    ran = vmferry("import", "test-1", "--libvirt", uri)
    assert ran.exit_code == 0
    written = tmp_path / "test-1.toml"
    written.write_text(ran.out)
    spec = load_guest_file(str(written))
    assert spec.uuid is not None  # libvirt gave it one
    assert dataclasses.replace(spec, uuid=None) == read_domain((DOMAINS / "kernel.xml").read_bytes()).spec
    assert ran.err.startswith("left out: test-1:1: /domain/@id: '1': the domain runs: shut it down before")
    assert re.search(r"^left out: test-1:\d+: /domain/on_poweroff: 'destroy'", ran.err, re.MULTILINE)
    missing = vmferry("import", "web-7", "--libvirt", uri)
    assert (missing.exit_code, missing.out) == (2, "")
    assert f"error: libvirt at {uri}, XML of domain web-7: Domain not found; `virsh list --all`" in missing.err


def test_a_libvirt_that_is_not_there_is_told(vmferry: Vmferry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --libvirt this host's daemon is asked; with it even what looks like a file is a domain's name."""
    asked: list[str] = []

    def refuse(uri: str) -> None:
        asked.append(uri)
        raise libvirt.libvirtError("nobody is there")

    monkeypatch.setattr("libvirt.openReadOnly", refuse)
    monkeypatch.setattr("libvirt.open", lambda uri: pytest.fail("more than reading was asked for"))
    for arguments in (["web-7"], ["web-7.xml", "--libvirt", "qemu+tcp://host-a/system"]):
        ran = vmferry("import", *arguments)
        assert (ran.exit_code, ran.out) == (7, "")
        assert "cannot be reached: nobody is there" in ran.err
    assert asked == ["qemu:///system", "qemu+tcp://host-a/system"]
    ran = vmferry("import", "web-7", "--libvirt", "qemu+ssh://host-a/system?command=/bin/sh")
    assert (ran.exit_code, ran.out) == (2, "")
    assert "command is not let through" in ran.err


def test_json_has_both_in_one_value(vmferry: Vmferry) -> None:
    """A program gets the guest file and what is left out, or the problem with every reason."""
    ran = vmferry("import", "uefi.xml", "--name", "db-2", "--json")
    told = json.loads(ran.out)
    assert told["guest_file"].startswith('name = "db-2"\n')
    assert told["left_out"][0]["where"] == "/domain/os/firmware"
    problem = json.loads(vmferry("import", "running.xml", "--accept", "address", "--json").out)
    assert (problem["event"], problem["code"]) == ("problem", "libvirt-domain")
    assert {row["accept"] for row in problem["problems"]} == set(ACCEPT.split(",")) - {"address"}


def test_what_two_devices_say_together_is_checked_before_anything_is_printed(vmferry: Vmferry, tmp_path: Path) -> None:
    """Two disks on one image are no guest file, though libvirt's schema knows no better."""
    text = (DOMAINS / "uefi.xml").read_text().replace("/srv/db-1-old.qcow2", "/srv/db-1.img")
    (tmp_path / "twice.xml").write_text(text)
    ran = vmferry("import", "twice.xml")
    assert (ran.exit_code, ran.out) == (2, "")
    assert "guest file made from twice.xml has 1 mistake" in ran.err
    assert "disk[2].image: '/srv/db-1.img', which is also disk[0].image" in ran.err


@pytest.mark.parametrize("name", ["missing.xml", "./", "missing/domain"])
def test_a_file_that_cannot_be_read_is_told(vmferry: Vmferry, name: str) -> None:
    """It is bad input, with what the file should have been."""
    ran = vmferry("import", name)
    assert (ran.exit_code, ran.out) == (2, "")
    assert "cannot be read" in ran.err
    assert "virsh dumpxml" in ran.err


def test_a_guest_file_is_printed_as_a_domain(vmferry: Vmferry, tmp_path: Path) -> None:
    """The XML alone is on standard output; what libvirt has no word for is on standard error."""
    written = tmp_path / "web-7.toml"
    written.write_text(vmferry("import", "running.xml", "--accept", ACCEPT).out)
    ran = vmferry("export", "web-7.toml")
    assert ran.exit_code == 0
    check_golden("export.xml", ran.out)
    assert ran.err == "left out: tpm: its state stays with the agent; the domain starts with an empty TPM\n"
    assert json.loads(vmferry("export", "./web-7.toml", "--json").out)["xml"] == ran.out


def test_a_guest_of_the_fleet_is_printed_as_it_was_frozen(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """UUID, acceleration and the MAC address that was made are in the domain, though its guest file left them open."""
    spec = {
        "name": "web-7",
        "memory_bytes": 512 * 2**20,
        "boot": {"kernel": "/k", "initrd": None, "cmdline": "quiet"},
        "vcpus": 2,
        "acceleration": "auto",
        "nics": [{"io_path": "virtio", "network": "bridge", "bridge": "br0", "mac": None, "forward_udp": []}],
    }
    view = guest_view(spec=spec, macs=["52:54:00:00:00:07"])
    fleet.has_guests(host_a=[view])
    fleet.answer("host-a", "GET", "/v1/guests/web-7", view)
    ran = vmferry("export", "web-7")
    assert (ran.exit_code, ran.err) == (0, "")
    for line in (
        '<domain type="qemu">',
        f"<uuid>{view['uuid']}</uuid>",
        '<mac address="52:54:00:00:00:07" />',
        "<cmdline>quiet</cmdline>",
    ):
        assert line in ran.out
    fleet.answer("host-a", "GET", "/v1/guests/web-7", {**view, "spec": {**spec, "vcpus": "many"}})
    later = vmferry("export", "web-7")
    assert (later.exit_code, later.out) == (7, "")
    assert "what host-a says of guest web-7 is not understood" in later.err

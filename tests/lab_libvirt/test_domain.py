"""A guest plan as a libvirt domain."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from vmferry.lab.guest_plans import DiskPlan, GuestPlan, NicPlan
from vmferry.lab.guests import GuestImage
from vmferry.lab.libvirt import domain_xml

IMAGE = GuestImage("linux", Path("/k"), Path("/i"), "quiet", (), None, None, "hash")
PLAN = GuestPlan("linux", "web-7", memory_mib=384, rate=7, nics=(NicPlan(),), disks=(DiskPlan(Path("/d.qcow2")),))


def domain(image: GuestImage = IMAGE) -> ET.Element:
    """Return the domain of the plan."""
    return ET.fromstring(domain_xml(PLAN, image, emulator="/usr/bin/qemu", cpu="qemu64", beat_port=5507))  # noqa: S314  (made a line above)


def text(found: ET.Element | None) -> str | None:
    """Return an element's text."""
    return None if found is None else found.text


def test_the_domain_is_the_planned_guest() -> None:
    """Machine, memory, CPU, kernel and workload are the plan's, so that movers are compared on the same guest."""
    made = domain()
    machine = made.find("os/type")
    assert machine is not None
    assert machine.get("machine") == PLAN.machine
    assert (text(made.find("name")), text(made.find("memory")), text(made.find("cpu/model"))) == (
        "web-7",
        "384",
        "qemu64",
    )
    assert (text(made.find("os/kernel")), text(made.find("os/initrd"))) == ("/k", "/i")
    assert text(made.find("os/cmdline")) == IMAGE.append(**PLAN.settings())
    assert [disk.get("file") for disk in made.findall("devices/disk/source")] == ["/d.qcow2"]


def test_the_beat_is_where_the_workload_writes_it() -> None:
    """isa-debugcon on port 0xe9, to the given UDP port of the host."""
    beat = domain().find("devices/serial[@type='udp']")
    assert beat is not None
    address, source = beat.find("address"), beat.find("source")
    assert address is not None
    assert source is not None
    assert (address.get("iobase"), source.get("service"), source.get("host")) == ("0xe9", "5507", "127.0.0.1")


def test_acpi_is_asked_for() -> None:
    """Without it libvirt 9.0 says -no-acpi, which QEMU 10 does not know."""
    assert domain().find("features/acpi") is not None


def test_a_guest_with_firmware_boots_by_it() -> None:
    """The debian guest has no kernel for QEMU but UEFI code and variables of its own."""
    uefi = GuestImage("debian", None, None, "", (Path("/root.qcow2"),), Path("/code.fd"), Path("/vars.fd"), "hash")
    made = domain(uefi)
    assert made.find("os/kernel") is None
    assert (text(made.find("os/loader")), text(made.find("os/nvram"))) == ("/code.fd", "/vars.fd")
    assert [disk.get("file") for disk in made.findall("devices/disk/source")] == ["/root.qcow2", "/d.qcow2"]

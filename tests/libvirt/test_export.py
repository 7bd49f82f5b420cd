"""A guest becomes a domain that libvirt takes, and that is the same guest when it is imported again."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from tests.guestfile.test_write import specs

from vmferry.core.errors import BadInput
from vmferry.core.guest import Acceleration, BiosBoot, Disk, GuestSpec, IoPath, KernelBoot, Nic
from vmferry.core.ids import GuestName
from vmferry.core.units import MIB, Bytes
from vmferry.guestfile import dump_guest_file, load_guest_file, parse_guest_file
from vmferry.libvirt import read_domain, write_domain
from vmferry.libvirt.findings import ACCEPTABLE
from vmferry.libvirt.processors import _FROM_QEMU
from vmferry.qemu.cpu import parse_cpu

DOMAINS = sorted((Path(__file__).parent / "domains").glob("*.xml"))
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
EVERYTHING = frozenset(ACCEPTABLE)
SPEC = GuestSpec(GuestName("web-7"), Bytes(512 * MIB), KernelBoot("/k"))


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run one of libvirt's own programs."""
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def accepted_by_libvirt(path: Path) -> None:
    """Have libvirt's schema and a libvirt (the one for tests, in its own process) take a domain."""
    checked = run("virt-xml-validate", str(path), "domain")
    assert checked.returncode == 0, checked.stderr
    defined = run("virsh", "--quiet", "--connect", "test:///default", "define", "--validate", str(path))
    if "passt" in path.read_text() and "'passt'" in defined.stderr:
        return  # this libvirt was built without it, as Debian 12's is
    assert defined.returncode == 0, defined.stderr


@pytest.mark.parametrize("path", DOMAINS, ids=lambda path: path.name)
def test_our_domains_are_libvirts(path: Path) -> None:
    """What the tests import is what libvirt's own schema calls a domain."""
    accepted_by_libvirt(path)


@pytest.mark.parametrize("path", DOMAINS, ids=lambda path: path.name)
def test_a_domain_comes_back_as_the_same_guest(path: Path, tmp_path: Path) -> None:
    """XML -> guest file -> XML -> guest file: both guest files are the same text, and libvirt takes the XML between."""
    spec = read_domain(path.read_bytes(), accept=EVERYTHING).spec
    first = dump_guest_file(spec)
    exported = write_domain(parse_guest_file(first))
    back = read_domain(exported.xml, accept=frozenset({"tpm"}))  # a TPM's content is left behind each time
    assert dump_guest_file(back.spec) == first
    written = tmp_path / "domain.xml"
    written.write_text(exported.xml)
    accepted_by_libvirt(written)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_libvirt_takes_every_example(path: Path, tmp_path: Path) -> None:
    """Each guest file among the examples is a domain for libvirt."""
    written = tmp_path / "domain.xml"
    written.write_text(write_domain(load_guest_file(str(path))).xml)
    accepted_by_libvirt(written)


@given(specs())
def test_every_guest_comes_back_but_for_what_is_told(spec: GuestSpec) -> None:
    """Whatever a guest file says is in the domain but `auto` and a measurement's address, and both are told."""
    if spec.host_devices or any(nic.is_function for nic in spec.nics):
        with pytest.raises(BadInput, match="not written as XML"):
            write_domain(spec)
        return
    if not is_xml(spec):
        with pytest.raises(BadInput, match="which no XML can hold"):
            write_domain(spec)
        return
    exported = write_domain(spec)
    back = read_domain(exported.xml, accept=frozenset({"tpm"})).spec
    kvm_or_tcg = Acceleration.KVM if spec.acceleration is Acceleration.AUTO else spec.acceleration
    assert parse_cpu(back.cpu) == parse_cpu(spec.cpu)
    assert back == replace(spec, echo=None, acceleration=kvm_or_tcg, cpu=back.cpu)
    told = "\n".join(exported.told)
    assert ("echo" in told) is (spec.echo is not None)
    assert ("acceleration" in told) is (spec.acceleration is Acceleration.AUTO)
    assert ("tpm" in told) is (spec.tpm is not None)


def is_xml(spec: GuestSpec) -> bool:
    """Tell whether XML can hold the command line."""
    text = spec.boot.cmdline if isinstance(spec.boot, KernelBoot) else ""
    return re.search(r"[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text) is None


def test_disks_are_named_as_linux_counts_them() -> None:
    """The twenty-seventh virtio disk is vdaa; SATA disks are counted for themselves."""
    disks = [Disk(f"/srv/{number}.qcow2") for number in range(28)] + [Disk("/srv/s.qcow2", io_path=IoPath.EMULATED)]
    names = re.findall(r'target dev="(\w+)"', write_domain(replace(SPEC, disks=tuple(disks))).xml)
    assert [names[0], *names[25:]] == ["vda", "vdz", "vdaa", "vdab", "sda"]


def test_features_have_libvirts_names() -> None:
    """A feature that QEMU spells otherwise is known to libvirt by its own name, however the guest file says it."""
    xml = write_domain(replace(SPEC, cpu="EPYC,+lahf-lm,pclmulqdq=off,-sse4_1,svm=on")).xml
    assert re.findall(r'policy="(\w+)" name="([\w.-]+)"', xml) == [
        ("require", "lahf_lm"),
        ("disable", "pclmuldq"),
        ("disable", "sse4.1"),
        ("require", "svm"),
    ]


def test_libvirt_knows_every_feature_that_it_spells_otherwise() -> None:
    """Each name of the table is one in libvirt's own CPU map, and what it is made of is none."""
    known = set(re.findall(r"<feature name='([^']+)'", Path("/usr/share/libvirt/cpu_map/x86_features.xml").read_text()))
    assert set(_FROM_QEMU.values()) <= known
    assert set(_FROM_QEMU) & known == set()


def test_what_libvirt_cannot_say_is_told() -> None:
    """Every guest that loses something is told of each thing that it loses."""
    spec = replace(
        SPEC,
        boot=BiosBoot(),
        disks=(Disk("/d"),),
        nics=(Nic(forward_udp=((7007, 7),)),),
        beat=True,
        tpm="2.0",
        echo="10.0.0.7:7007",
    )
    assert [sentence.partition(":")[0].partition(" ")[0] for sentence in write_domain(spec).told] == [
        "acceleration",
        "echo",
        "beat",
        "tpm",
        "forward_udp",
    ]
    assert write_domain(replace(SPEC, acceleration=Acceleration.TCG)).told == ()

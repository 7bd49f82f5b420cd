"""Libvirt's own documentation and its own domains for tests: read without a crash, and the same when they come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.libvirt.documentation import as_ours, fetch, snippets
from tests.libvirt.test_export import accepted_by_libvirt

from vmferry.core.errors import BadInput
from vmferry.core.guest import GuestSpec
from vmferry.guestfile import GuestFileInvalid, dump_guest_file, parse_guest_file
from vmferry.libvirt import DomainRefused, read_domain, write_domain
from vmferry.libvirt.checks import read_offer
from vmferry.libvirt.checks.offer import Said
from vmferry.libvirt.findings import ACCEPTABLE

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
EVERYTHING = frozenset(ACCEPTABLE)
#: elements of other hypervisors and architectures; `log` and `filterref` stand alone in a snippet, without their device
STRANGERS = re.compile(
    r"/domain/(bootloader|bootloader_args|idmap|keywrap|audio|log|os/(dtb|init\w*)|devices/(filterref|interface/backenddomain)"
    r"|features/(privnet|xen|gic|hpt|htm|ccf-assist|cfpc|sbbc|ibs|nested-hv))$"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libvirt's source."""
    return fetch(tmp_path_factory.mktemp("libvirt"))


def come_back(text: str | bytes) -> GuestSpec | None:
    """Return the guest, the same after a way there and back and as a guest file; None for a domain that is refused."""
    try:
        spec = read_domain(text, name="web-7", accept=EVERYTHING).spec
        first = dump_guest_file(spec)
        assert parse_guest_file(first) == spec
    except (DomainRefused, GuestFileInvalid):
        return None
    back = read_domain(write_domain(spec).xml, accept=frozenset({"tpm"})).spec
    assert dump_guest_file(back) == first
    return spec


def libvirt_takes(guests: list[GuestSpec], directory: Path) -> None:
    """Have libvirt take each domain that the guests become, once."""
    for number, xml in enumerate({write_domain(spec).xml for spec in guests}):
        written = directory / f"{number}.xml"
        written.write_text(xml)
        accepted_by_libvirt(written)


def test_the_documentations_snippets_come_back(source: Path, tmp_path: Path) -> None:
    """Each is a guest that comes back by a domain that libvirt takes, or is refused; nearly half are guests."""
    texts = [text for _, text in snippets((source / "docs/formatdomain.rst").read_text())]
    guests = [spec for text in texts if (spec := come_back(text)) is not None]
    assert len(texts) > 140
    assert len(guests) > 60
    libvirt_takes(guests, tmp_path)


def test_the_tables_know_what_the_documentation_knows(source: Path) -> None:
    """What is unknown here belongs to another hypervisor or architecture."""
    unknown = {}
    for line, text in snippets((source / "docs/formatdomain.rst").read_text()):
        try:
            read_domain(text, name="web-7", accept=EVERYTHING)
        except DomainRefused as error:
            places = {re.sub(r"\[\d+\]", "", f.where) for f in error.findings if "does not know it" in f.what}
            if text.count("<os>") + text.count("<os ") < 2:  # one snippet shows six
                unknown.update({place: line for place in places if not STRANGERS.match(place)})
    assert unknown == {}


def test_the_domains_of_libvirts_tests_come_back(source: Path, tmp_path: Path) -> None:
    """Each is read as it is and as a q35 one: a guest that comes back by a domain that libvirt takes, or refused."""
    paths = sorted(source.glob("tests/qemuxml2*/*.xml"))
    assert len(paths) > 1500
    guests = []
    for path in paths:
        raw = path.read_bytes()
        for text in (raw, as_ours(raw.decode())):
            try:
                guests += [spec for spec in [come_back(text)] if spec is not None]
            except BadInput as error:
                pytest.fail(f"{path.name}: {error}")
    assert len(guests) > 400
    libvirt_takes(guests, tmp_path)


def test_what_libvirt_says_of_hosts_is_read(source: Path) -> None:
    """Of each QEMU that its tests describe the usable CPU models are known, of a host what it runs."""
    host = (source / "tests/capabilityschemadata/caps-qemu-kvm.xml").read_text()
    models = {}
    for path in source.glob("tests/domaincapsdata/qemu_*.x86_64.xml"):
        offer = read_offer(Said("host-b", host, path.read_text()))
        assert offer.accelerations == {"qemu", "kvm"}
        assert "pc" in offer.machines
        models[path.name] = offer.cpu_models
    assert len(models) > 30
    assert [name for name, usable in models.items() if "qemu64" not in usable] == []
    assert "EPYC-Milan" not in models["qemu_7.2.0-tcg.x86_64.xml"]

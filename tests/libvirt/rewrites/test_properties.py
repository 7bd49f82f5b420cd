"""Whatever the domain and the names are: a rewrite touches its concern alone, and nothing the second time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.core.pci import PciAddress
from vmferry.libvirt.rewrites import (
    disable_features,
    name_model,
    replace_bridges,
    replace_cards,
    replace_devices,
    replace_disks,
    replace_listen,
    replace_networks,
    set_emulator,
)
from vmferry.libvirt.tree import Element, parse

FIXTURES = [path.read_text("utf-8") for path in sorted((Path(__file__).parents[1] / "domains").glob("*.xml"))]
#: everything that a rewrite has to do with, several times, with values that other places have too
BUSY = """<domain type='kvm'><name>br0</name><cpu mode='host-model'><feature policy='require' name='br0'/></cpu>
<devices><emulator>br0</emulator>{}</devices></domain>"""
PARTS = (
    "<interface type='bridge'><source bridge='br0'/><target dev='br0'/></interface>",
    "<interface type='network'><source network='br0' bridge='br0' portid='1'/><alias name='br0'/></interface>",
    "<interface type='direct'><source dev='br0' mode='bridge'/></interface>",
    "<interface type='hostdev'><source><address type='pci' bus='3' slot='1' function='0'/></source></interface>",
    "<hostdev type='pci'><source><address bus='3' slot='1' function='0'/></source><address bus='3'/></hostdev>",
    "<hostdev type='usb'><source><address bus='3' slot='1' function='0'/></source></hostdev>",
    "<disk><source file='br0' dev='br0'/><backingStore><source file='br0'/></backingStore><serial>br0</serial></disk>",
    "<graphics listen='br0'><listen type='address' address='br0'/><listen type='socket' address='br0'/></graphics>",
)
VF = {PciAddress(0, 3, 1, 0): PciAddress(0, 5, 2, 3)}
#: rewrite -> (what it does with names, the places that it may change: tag of the element, attribute)
Names = Mapping[str, str]
TEXT = None  #: what stands in an element
CONCERNS: dict[str, tuple[Callable[[str, Names], str], set[tuple[str, str | None]]]] = {
    "bridges": (replace_bridges, {("devices/interface/source", "bridge")}),
    "cards": (replace_cards, {("devices/interface/source", "dev")}),
    "networks": (
        replace_networks,
        {("devices/interface/source", name) for name in ("network", "bridge", "portid")},
    ),
    "disks": (
        replace_disks,
        {(f"devices/disk/{'backingStore/' * depth}source", name) for depth in range(8) for name in ("file", "dev")},
    ),
    "listen": (replace_listen, {("devices/graphics", "listen"), ("devices/graphics/listen", "address")}),
    "devices": (
        lambda xml, _: replace_devices(xml, VF),
        {
            (f"devices/{tag}/source/address", name)
            for tag in ("interface", "hostdev")
            for name in ("domain", "bus", "slot", "function")
        },
    ),
    "emulator": (lambda xml, names: set_emulator(xml, next(iter(names), "x")), {("devices/emulator", TEXT)}),
}


def places(element: Element) -> Iterator[tuple[str, str, str | None, str]]:
    """Yield everything that XML says: where, under which key, which attribute or the text, its value."""
    yield element.where, element.key, TEXT, element.text.strip()
    for name, value in element.attributes.items():
        yield element.where, element.key, name, value
    for child in element.children:
        yield from places(child)


def domains() -> st.SearchStrategy[str]:
    """A fixture, or a domain with any devices."""
    made = st.lists(st.sampled_from(PARTS), max_size=8).map(lambda parts: BUSY.replace("{}", "".join(parts)))
    return st.one_of(st.sampled_from(FIXTURES), made)


@st.composite
def names_in(draw: st.DrawFn, xml: str) -> dict[str, str]:
    """Some of its own values, each with another one."""
    values = sorted({value for _, _, _, value in places(parse(xml)) if value})
    old = draw(st.lists(st.sampled_from(values), max_size=4, unique=True))
    return {name: f"there-{index}" for index, name in enumerate(old)}


@pytest.mark.parametrize("concern", CONCERNS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_rewrite_touches_its_concern_alone(concern: str, data: st.DataObject) -> None:
    """Every other place says what it said, nothing is lost or added; and a second time changes nothing."""
    rewrite, may = CONCERNS[concern]
    xml = data.draw(domains())
    names = {"br0": "br1"} | data.draw(names_in(xml))
    changed = rewrite(xml, names)
    before, after = list(places(parse(xml))), list(places(parse(changed)))
    kept = [each for each in before if (each[1], each[2]) not in may]
    assert kept == [each for each in after if (each[1], each[2]) not in may]
    assert [each[0] for each in before if each[2] is TEXT] == [each[0] for each in after if each[2] is TEXT]
    assert rewrite(changed, names) == changed


@pytest.mark.parametrize("concern", [name for name in CONCERNS if name != "emulator"])
def test_each_concern_has_something_to_do_in_the_busy_domain(concern: str) -> None:
    """The property above is about changes: each of these rewrites makes one."""
    busy = BUSY.replace("{}", "".join(PARTS))
    assert CONCERNS[concern][0](busy, {"br0": "br1"}) != busy


@settings(max_examples=60, deadline=None)
@given(domains(), st.lists(st.sampled_from(["avx", "br0", "svm"]), max_size=3, unique=True))
def test_a_cpu_changes_alone(xml: str, features: list[str]) -> None:
    """Nothing but what is below <cpu> is another one, and nothing the second time."""
    rewrites: tuple[Callable[[str], str], ...] = (
        lambda text: disable_features(text, features),
        lambda text: name_model(text, "EPYC"),
    )
    for rewrite in rewrites:
        changed = rewrite(xml)
        outside = [[each for each in places(parse(text)) if not each[1].startswith("cpu")] for text in (xml, changed)]
        assert outside[0] == outside[1]
        assert rewrite(changed) == changed

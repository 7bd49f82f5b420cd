"""Whatever becomes of a domain's XML, reading it ends with a guest or with bad input, and a guest comes back."""

from __future__ import annotations

import copy
from pathlib import Path
from xml.etree import ElementTree as ET  # reads our own fixtures

from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.core.errors import BadInput
from vmferry.libvirt import read_domain, write_domain
from vmferry.libvirt.checks import Case, find_blockers, read_offer
from vmferry.libvirt.checks.offer import Said
from vmferry.libvirt.findings import ACCEPTABLE
from vmferry.libvirt.tree import parse

ROOTS = [ET.fromstring(path.read_bytes()) for path in sorted((Path(__file__).parent / "domains").glob("*.xml"))]  # noqa: S314
EVERYTHING = frozenset(ACCEPTABLE)
#: values that other places of a domain have, and some that none has
WORDS = sorted(
    {value for root in ROOTS for each in root.iter() for value in each.attrib.values()} | {"", "0", "-1", "x/"}
)
TAGS = sorted({each.tag for root in ROOTS for each in root.iter()} | {"quantum"})
EMPTY = read_offer(Said("host-b", "<capabilities/>", None, networks={}, pools={}, node_devices=frozenset()))


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A domain in which one to four things were removed, doubled, renamed, moved or given another value."""
    root = copy.deepcopy(draw(st.sampled_from(ROOTS)))
    for _ in range(draw(st.integers(1, 4))):
        parents = [each for each in root.iter() if len(each)]
        parent = draw(st.sampled_from(parents))
        index = draw(st.integers(0, len(parent) - 1))
        child = parent[index]
        kind = draw(st.sampled_from(["remove", "double", "rename", "move", "value", "text", "attribute"]))
        if kind == "remove":
            parent.remove(child)
        elif kind == "double":
            parent.append(copy.deepcopy(child))
        elif kind == "rename":
            child.tag = draw(st.sampled_from(TAGS))
        elif kind == "move":
            draw(st.sampled_from(parents)).append(copy.deepcopy(child))
        elif kind == "text":
            child.text = draw(st.sampled_from(WORDS))
        elif child.attrib and kind == "value":
            child.set(draw(st.sampled_from(sorted(child.attrib))), draw(st.sampled_from(WORDS)))
        else:
            child.set(draw(st.sampled_from(["type", "mode", "name", "quantum"])), draw(st.sampled_from(WORDS)))
        if not any(len(each) for each in root.iter()):
            break
    return ET.tostring(root)


@settings(max_examples=300, deadline=None)
@given(mutants())
def test_a_changed_domain_is_a_guest_that_comes_back_or_bad_input(xml: bytes) -> None:
    """Never another error; and what is read as a guest is the same guest after a way there and back."""
    try:
        imported = read_domain(xml, accept=EVERYTHING)
    except BadInput:
        return
    back = read_domain(write_domain(imported.spec).xml, accept=frozenset({"tpm"}))
    assert back.spec == imported.spec


@settings(max_examples=150, deadline=None)
@given(mutants())
def test_a_changed_domain_is_checked_without_a_crash(xml: bytes) -> None:
    """The checks judge whatever a daemon says; a host that offers nothing is never fit."""
    assert find_blockers(Case(parse(xml), None, EMPTY)).blockers

"""The tables speak of elements that libvirt has, in words that a person can act on."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET  # the schema is the distribution's own file

import pytest

from vmferry.libvirt.findings import ACCEPTABLE, Effect
from vmferry.libvirt.rules import RULES, find_rule, split_key
from vmferry.libvirt.tree import parse

SCHEMAS = Path("/usr/share/libvirt/schemas")
#: what libvirt 9.0 does not have yet: a later one's words, from its documentation
LATER = {
    "devices/disk/driver/@discard_no_unref",
    "devices/crypto",
    "devices/pstore",
    "features/ps2",
    "features/ps2[state=on]",
}
LATER |= {"devices/interface/driver/@page_per_vq", "devices/disk/driver/@page_per_vq", "devices/disk/driver/iothreads"}


def schema_names() -> tuple[set[str], set[str]]:
    """Return every element and attribute that libvirt's schema of a domain knows."""
    elements: set[str] = set()
    attributes: set[str] = set()
    for path in SCHEMAS.glob("*.rng"):
        for node in ET.parse(path).getroot().iter():  # noqa: S314  # as above
            kind = node.tag.rpartition("}")[2]
            if kind in {"element", "attribute"} and "name" in node.attrib:
                (elements if kind == "element" else attributes).add(node.attrib["name"].rpartition(":")[2])
    return elements, attributes


def test_every_rule_is_about_something_that_libvirt_has() -> None:
    """A mistyped path would be a rule that never fits, and its element would be refused as unknown."""
    elements, attributes = schema_names()
    wrong = []
    for key in RULES.keys() - LATER:
        path, given = split_key(key)
        for part in path.rpartition("}")[2].split("/"):
            known = attributes if part.startswith("@") else elements
            if part.lstrip("@") not in known:
                wrong.append(f"{key}: {part}")
        wrong += [f"{key}: {name}" for name, _ in given if name not in attributes]
    assert wrong == []


def test_no_rule_is_hidden_by_another() -> None:
    """An element's rule settles all below it: one further down is asked only where a module reads the element."""
    read = {"devices/serial", "devices/channel"}
    settled = {split_key(key)[0] for key in RULES if "@" not in key.rpartition("/")[2]} - read
    hidden = [key for key in RULES for path in settled if split_key(key)[0].startswith(f"{path}/")]
    assert hidden == []


def test_every_refusal_says_what_to_do() -> None:
    """A refusal has a fix, what is asked for has a name, and everything says what is lost."""
    for key, rule in RULES.items():
        assert rule.what, key
        assert bool(rule.fix) is (rule.effect is Effect.REFUSED), key
        assert bool(rule.accept) is (rule.effect is Effect.ASKED), key
        assert rule.accept == "" or rule.accept in ACCEPTABLE, key


def test_every_name_to_accept_is_asked_for_somewhere() -> None:
    """There is no name that nothing asks for: in the tables, or in the modules that compare with what guests have."""
    source = "".join(path.read_text() for path in Path(__file__).parents[2].glob("src/vmferry/libvirt/*.py"))
    asked = {rule.accept for rule in RULES.values()} | set(re.findall(r'found\.ask\(.*, "(\w+)"\)\n', source))
    assert asked - {""} == ACCEPTABLE.keys()


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("<input type='mouse' bus='ps2'/>", Effect.SILENT),
        ("<input type='mouse' bus='usb'/>", Effect.ASKED),
        ("<controller type='usb' model='none'/>", Effect.SILENT),
        ("<controller type='usb' model='none' index='0'/>", Effect.SILENT),
        ("<controller type='usb'/>", Effect.ASKED),
        ("<controller type='quantum'/>", Effect.ASKED),
        ("<inputs type='mouse' bus='ps2'/>", Effect.REFUSED),
    ],
)
def test_the_rule_with_the_most_that_fits_is_taken(text: str, effect: Effect) -> None:
    """Attributes make the difference, their order and others beside them do not."""
    root = parse(f"<domain><devices>{text}</devices></domain>")
    assert find_rule(root.children[0].children[0], None).effect is effect

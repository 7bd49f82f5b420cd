"""XML is read without harm, and the tree knows what of it nobody has read."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from vmferry.core.errors import BadInput, Broken
from vmferry.libvirt import DomainRefused, read_domain
from vmferry.libvirt.tree import MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS, Element, XmlRefused, parse

#: ten entities, each ten of the one before: 3 GB of "lol" once expanded
LAUGHS = (
    '<?xml version="1.0"?>\n<!DOCTYPE domain [\n <!ENTITY lol0 "lol">\n'
    + "".join(f' <!ENTITY lol{n} "{f"&lol{n - 1};" * 10}">\n' for n in range(1, 10))
    + "]>\n<domain><name>&lol9;</name></domain>"
)
#: text -> (line, word of what is wrong)
REFUSED = {
    "billion laughs": (LAUGHS, 2, "document type"),
    "one long entity, often": (
        f'<!DOCTYPE d [<!ENTITY a "{"x" * 50_000}">]><d>{"&a;" * 50_000}</d>',
        1,
        "document type",
    ),
    "a file of this host": ('<!DOCTYPE d [<!ENTITY f SYSTEM "file:///etc/passwd">]>\n<d>&f;</d>', 1, "document type"),
    "a document type from elsewhere": ('\n<!DOCTYPE d SYSTEM "http://host-b/d.dtd"><d/>', 2, "document type"),
    "an entity that nobody declared": ("<d>\n&lol;</d>", 2, "undefined entity"),
    "not closed": ("<d>\n<e></d>", 2, "mismatched tag"),
    "nothing": ("", 1, "no element"),
    "no XML": ('name = "web-7"', 1, "syntax error"),
    "two roots": ("<d/>\n<d/>", 2, "junk"),
    "too deep": ("<d>" * (MAX_DEPTH + 1), 1, "deep"),
    "too many": ("<d>" + "<e/>" * MAX_ELEMENTS + "</d>", 1, "elements"),
    "too large": ("<d>" + " " * MAX_BYTES + "</d>", None, "bytes"),
    "an encoding of many bytes": ('<?xml version="1.0" encoding="shift-jis"?><d/>', 1, "encoding"),
    "an encoding that is not there": ('<?xml version="1.0" encoding="klingon"?><d/>', 1, "encoding"),
}


@pytest.mark.parametrize(("text", "line", "word"), REFUSED.values(), ids=REFUSED)
def test_what_may_do_harm_is_refused_at_once(text: str, line: int | None, word: str) -> None:
    """It is told with its line, costs next to nothing, and is bad input for whoever imports it."""
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(XmlRefused) as caught:
        parse(text.encode())
    took, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (caught.value.line, word in caught.value.what) == (line, True), caught.value
    assert took < 2
    assert peak < 32 * MAX_BYTES
    place = "web-7.xml" if line is None else f"web-7.xml:{line}"
    with pytest.raises(BadInput, match=rf"^{place}: this is not read as a libvirt domain: .*{word}"):
        read_domain(text.encode(), source="web-7.xml")


def test_as_many_mistakes_as_there_can_be_cost_little() -> None:
    """A domain of nothing but unknown elements is refused with each of them, in a moment (0.2 s of CPU; limit 5)."""
    text = f"<domain><devices>{'<quantum/>' * (MAX_ELEMENTS - 2)}</devices></domain>"
    started = time.process_time()
    with pytest.raises(DomainRefused) as caught:
        read_domain(text)
    assert time.process_time() - started < 5
    assert caught.value.findings[-1].where.endswith(f"/quantum[{MAX_ELEMENTS - 2}]")


def test_bytes_in_another_encoding_are_read() -> None:
    """The XML's own declaration says how its bytes are read; bytes that break it are refused with their line."""
    text = '<?xml version="1.0" encoding="ISO-8859-1"?><d>Größe</d>'
    assert parse(text.encode("latin-1")).text == parse(text).text == "Größe"
    with pytest.raises(XmlRefused, match="line 2"):
        parse(b"<d>\n\xff</d>")


def test_what_nobody_read_is_told_and_nothing_below_it_twice() -> None:
    """Attributes of read elements and whole unread elements are yielded, in the order of the text."""
    root = parse("<d a='1' b='2'>\n<e c='3'><f/></e>\n<g h='4'/><g/></d>")
    root.get("a")
    assert root.one("e") is not None
    assert [g.get("h") for g in root.every("g", most=1)] == ["4"]
    assert told(root) == ["/d@b", "/d/e@c", "/d/e/f", "/d/g[2]"]


def test_what_is_given_back_counts_as_unread() -> None:
    """Whoever looked at an element and does not want it leaves it to others."""
    root = parse("<d><e c='3'/></d>")
    element = root.one("e")
    assert element is not None
    element.give_back()
    assert told(root) == ["/d/e"]
    element.read_whole()
    assert told(root) == []


def told(root: Element) -> list[str]:
    """Return what is unread as paths."""
    return [element.where + ("" if name is None else f"@{name}") for element, name in root.unread()]


def test_a_daemon_that_says_no_xml_has_failed() -> None:
    """Whoever asked it sees a sentence and what to do, no traceback."""
    with pytest.raises(
        Broken, match=r"libvirt says what is no XML that is read here: line 1: .*; look at it with virsh"
    ):
        parse("<d>")

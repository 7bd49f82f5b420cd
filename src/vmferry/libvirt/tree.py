"""XML that somebody sent, as a tree that knows each line and what of it has been read.

A domain's XML comes from a file or from another host's daemon, so reading it must be harmless: its size, depth and
number of elements are bounded, and a document type declaration is refused before anything of it is expanded: entities
(billion laughs, external files) can be declared nowhere else.

The tree remembers what was read of it. What nobody read is what a guest file does not say: `unread` lists it, so that
nothing gets lost in silence, whatever a newer libvirt adds.

Source: https://docs.python.org/3/library/pyexpat.html; libvirt's own bound is 10 MiB for a remote call's string
(VIR_NET_MESSAGE_STRING_MAX).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from vmferry.core.errors import Broken

#: A domain with a hundred devices has 60 KiB; more is a mistake or an attack.
MAX_BYTES = 1024 * 1024
MAX_DEPTH = 64
MAX_ELEMENTS = 20_000


class XmlRefused(Broken, ValueError):
    """The text is no XML that is read here; carries the line (from 1), None where it concerns the whole text.

    A failure that a user can see: most texts come from a daemon. Whoever reads a person's file says it in other words.
    """

    def __init__(self, line: int | None, reason: str) -> None:
        place = "" if line is None else f"line {line}: "
        super().__init__(
            f"libvirt says what is no XML that is read here: {place}{reason}",
            fix="look at it with virsh (dumpxml, capabilities, nodedev-dumpxml, pool-dumpxml) on that host",
        )
        self.line = line
        self.reason = reason


@dataclass(slots=True, eq=False)
class Element:
    """One element: what it says, where it stands, and what of it has been read."""

    tag: str  #: with its namespace's name in front where it has one: "http://example.org/ns}tag"
    attributes: dict[str, str]
    line: int  #: from 1
    parent: Element | None = None
    children: list[Element] = field(default_factory=list)
    text: str = ""  #: as it stands there, with spaces; empty where there are elements
    _number: int = 1  #: among those of its tag
    _counts: dict[str, int] = field(default_factory=dict)  #: how many children of each tag there are
    _seen: bool = False
    _read: set[str] = field(default_factory=set)

    @property
    def key(self) -> str:
        """The tags from below the root to here, without indices: devices/disk/driver; empty for the root."""
        if self.parent is None:
            return ""
        return f"{self.parent.key}/{self.tag}".lstrip("/")

    @property
    def where(self) -> str:
        """The XPath of this element: /domain/devices/disk[2]/driver; the index only where there are several."""
        if self.parent is None:
            return f"/{self.tag}"
        index = f"[{self._number}]" if self.parent._counts.get(self.tag, 1) > 1 else ""  # noqa: SLF001  # as in every
        return f"{self.parent.where}/{self.tag}{index}"

    def adopt(self, child: Element) -> None:
        """Make it the last child."""
        child._number = self._counts[child.tag] = self._counts.get(child.tag, 0) + 1
        self.children.append(child)

    def get(self, name: str) -> str | None:
        """Return an attribute, which counts as read."""
        self._read.add(name)
        return self.attributes.get(name)

    def one(self, tag: str) -> Element | None:
        """Return the first child of that tag, which counts as read; others of the tag stay unread."""
        return next(self.every(tag, most=1), None)

    def every(self, tag: str, *, most: int | None = None) -> Iterator[Element]:
        """Yield the children of that tag, the first `most` of them; each counts as read when it is yielded."""
        for child in [child for child in self.children if child.tag == tag][:most]:
            child._seen = True  # noqa: SLF001  # a child is of the same class
            yield child

    def give_back(self) -> None:
        """Count as unread again: whoever looked at it does not want it."""
        self._seen = False

    def open(self) -> None:
        """Count as read, but nothing that it has."""
        self._seen = True

    def read_whole(self) -> None:
        """Count as read with everything below."""
        self._seen = True
        self._read.update(self.attributes)
        for child in self.children:
            child.read_whole()

    def unread(self) -> Iterator[tuple[Element, str | None]]:
        """Yield what nobody read, in the order of the text: (element, None) or (element, name of its attribute).

        What is below an unread element is not yielded beside it.
        """
        for name in self.attributes:
            if name not in self._read:
                yield self, name
        for child in self.children:
            if child._seen:  # noqa: SLF001  # as in every
                yield from child.unread()
            else:
                yield child, None


def parse(text: str | bytes) -> Element:
    """Return the root of an XML text; it does not count as read, and nothing else does.

    Comments and processing instructions are skipped.

    Raises:
        XmlRefused: it is not well-formed, has a document type declaration, or is larger or deeper than a domain is.
    """
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    if len(raw) > MAX_BYTES:
        raise XmlRefused(None, f"{len(raw)} bytes, expected at most {MAX_BYTES}")
    # A text that was decoded already has no other encoding, whatever its first line says.
    return _Builder("utf-8" if isinstance(text, str) else None).build(raw)


class _Builder:
    """Makes the tree out of the parser's events."""

    def __init__(self, encoding: str | None) -> None:
        self._parser = expat.ParserCreate(encoding, namespace_separator="}")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._open: list[Element] = []
        self._root: Element | None = None
        self._count = 0

    def build(self, raw: bytes) -> Element:
        try:
            self._parser.Parse(raw, True)  # noqa: FBT003  # expat takes no name for it
        except expat.ExpatError as error:
            raise XmlRefused(error.lineno, expat.ErrorString(error.code)) from error
        except XmlRefused:
            raise
        except (LookupError, ValueError) as error:  # what its first line names is no encoding, or one of many bytes
            raise XmlRefused(1, str(error)) from error
        if self._root is None:  # pragma: no cover  # expat refuses a text without an element
            raise XmlRefused(None, "no element")
        return self._root

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        line = self._parser.CurrentLineNumber
        if self._count > MAX_ELEMENTS:
            raise XmlRefused(line, f"more than {MAX_ELEMENTS} elements")
        if len(self._open) >= MAX_DEPTH:
            raise XmlRefused(line, f"elements more than {MAX_DEPTH} deep")
        parent = self._open[-1] if self._open else None
        element = Element(tag, attributes, line, parent)
        if parent is None:
            self._root = element
        else:
            parent.adopt(element)
        self._open.append(element)

    def _end(self, _: str) -> None:
        done = self._open.pop()
        if done.children:
            done.text = ""  # what stands between elements only lays them out

    def _characters(self, text: str) -> None:
        self._open[-1].text += text

    def _refuse_doctype(self, *_: object) -> NoReturn:
        raise XmlRefused(
            self._parser.CurrentLineNumber, "a document type declaration, which no domain has and which may do harm"
        )

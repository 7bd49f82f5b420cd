"""One question, and its answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.offer import Offer
from vmferry.libvirt.facts import DomainState
from vmferry.libvirt.tree import Element


@dataclass(frozen=True, slots=True)
class XmlBlocker(Blocker):
    """A blocker whose fix is a change of the domain's XML."""

    diff: str = ""  #: unified, over the XML as libvirt lays it out


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a domain can move."""

    blockers: tuple[Blocker, ...]
    unseen: tuple[str, ...]  #: what could keep it from moving and could not be seen, a sentence each


@dataclass(frozen=True, slots=True)
class Case:
    """A domain, and the host to which it shall move."""

    domain: Element  #: its live XML
    source_cpu: str | None  #: the source's own CPU (`offer.host_cpu`); None: not known
    destination: Offer
    state: DomainState | None = None  #: at the source; None: not known
    job: str | None = None  #: what works on it there, in words; None: nothing, or the daemon does not say

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.text("name")

    @property
    def uuid(self) -> str:
        """The domain's UUID."""
        return self.text("uuid")

    def text(self, path: str) -> str:
        """Return the text of the first element at a path below the root; "" without one."""
        found = next(self.every(path), None)
        return "" if found is None else found.text.strip()

    def attribute(self, path: str, name: str) -> str:
        """Return an attribute of the first element at a path below the root; "" without one."""
        found = next(self.every(path), None)
        return "" if found is None else found.attributes.get(name, "")

    def every(self, path: str) -> Iterator[Element]:
        """Yield the elements at a path below the root."""
        return below(self.domain, path)


def below(element: Element, path: str) -> Iterator[Element]:
    """Yield the elements at a path below another one."""
    tag, _, rest = path.partition("/")
    for child in element.children:
        if child.tag == tag:
            if rest:
                yield from below(child, rest)
            else:
                yield child


def first(element: Element, path: str) -> Element | None:
    """Return the first element at a path below another one."""
    return next(below(element, path), None)

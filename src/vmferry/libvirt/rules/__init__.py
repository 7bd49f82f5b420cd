"""Tables: what becomes of each element and attribute of a domain that no module carries over.

A key is the path below <domain>, with values of its attributes in brackets where they matter, and `/@name` for an
attribute: "devices/input[type=mouse][bus=ps2]", "devices/disk/driver[discard=unmap]/@discard". The rule with the most
values that fit is taken. An element's rule settles everything below it. What has no rule is refused: a newer libvirt
may mean anything by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmferry.libvirt.findings import Effect, Finding, Findings, short
from vmferry.libvirt.rules import devices, disks, domain, nics
from vmferry.libvirt.rules.rule import ANYWHERE, Rule
from vmferry.libvirt.tree import Element

RULES: dict[str, Rule] = {**domain.RULES, **disks.RULES, **nics.RULES, **devices.RULES}

_UNKNOWN = Rule(
    Effect.REFUSED,
    "this version of vmferry does not know it, so what the guest would lose is not known either",
    fix="take it out of the XML if the guest can do without it",
)
_CONDITION = re.compile(r"\[([^=\]]+)=([^\]]*)\]")
_Place = tuple[Rule, Element, str | None]
_Row = tuple[frozenset[tuple[str, str]], Rule]


def settle(domain: Element, found: Findings) -> None:
    """Add what becomes of everything that nobody has read.

    Each is told for itself but for what every device has (addresses) and what is only left out: once, with how many.
    """
    groups: dict[object, list[_Place]] = {}
    for element, attribute in _unsettled(domain):
        rule = find_rule(element, attribute)
        one = "address" if rule.accept == "address" else (rule, element.key, attribute)
        together = rule.accept == "address" or rule.effect is Effect.LEFT_OUT
        groups.setdefault(one if together else (id(element), attribute), []).append((rule, element, attribute))
    for places in groups.values():
        if places[0][0].effect is not Effect.SILENT:
            found.add(_finding(places))


def _unsettled(element: Element) -> Iterator[tuple[Element, str | None]]:
    """Yield what nobody has read; of an element that the tables know only from within, what is in it."""
    for below, attribute in element.unread():
        if attribute is None and find_rule(below, None) is _UNKNOWN and below.key in _OPENED:
            below.open()
            yield from _unsettled(below)
        else:
            yield below, attribute


def find_rule(element: Element, attribute: str | None) -> Rule:
    """Return what becomes of an element, or of one of its attributes."""
    rows = _BY_PATH.get(element.key if attribute is None else f"{element.key}/@{attribute}".lstrip("/"), [])
    fitting = [row for row in rows if row[0] <= set(element.attributes.items())]
    if fitting:
        return max(fitting, key=lambda row: len(row[0]))[1]
    if attribute is None:
        return next((rule for tag, given, rule in ANYWHERE if _is(element, tag, given)), _UNKNOWN)
    return _UNKNOWN


def split_key(key: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Return a rule's path and the attributes that it asks for."""
    return _CONDITION.sub("", key), frozenset(_CONDITION.findall(key))


def _is(element: Element, tag: str, given: dict[str, str]) -> bool:
    return element.tag == tag and given.items() <= element.attributes.items()


def _finding(places: list[_Place]) -> Finding:
    rule, element, attribute = places[0]
    where = element.where if attribute is None else f"{element.where}/@{attribute}"
    seen = _seen(element) if attribute is None else short(element.attributes[attribute])
    if len(places) > 1:
        seen += f" and {len(places) - 1} more, the last in line {places[-1][1].line}"
    fix = f"--accept {rule.accept}" if rule.effect is Effect.ASKED else rule.fix
    return Finding(rule.effect, element.line, where, seen, rule.what, fix, rule.accept)


def _seen(element: Element) -> str:
    tag = element.tag.rpartition("}")[2]
    attributes = "".join(f" {name}={short(value)}" for name, value in list(element.attributes.items())[:3])
    if element.text.strip() and not element.children and not attributes:
        return short(element.text.strip())
    return f"<{tag}{attributes}>"


def _by_path() -> Iterator[tuple[str, _Row]]:
    for key, rule in RULES.items():
        path, given = split_key(key)
        yield path, (given, rule)


#: Elements without a rule of their own, in which there are some.
_OPENED = {
    path.rsplit("/", count)[0]
    for path, _ in map(split_key, RULES)
    for count in range(1, path.count("/") + 1)
    if "://" not in path
} - RULES.keys()
_BY_PATH: dict[str, list[_Row]] = {}
for _path, _row in _by_path():
    _BY_PATH.setdefault(_path, []).append(_row)

"""The CPU that the domain has seen must be there at the destination."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.checks.cpu import PROPOSALS
from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import Case, XmlBlocker, first
from vmferry.libvirt.checks.editing import Lookup, diff_of
from vmferry.libvirt.tree import Element

#: How libvirt says what is missing (virsh hypervisor-cpu-compare --error).
_MISSING = re.compile(r"required features: (.+?)\s*$", re.MULTILINE)
_LATER = "shut it down, change its XML, and start it: a running domain keeps its CPU"


def check_cpu(case: Case) -> Iterator[Blocker]:
    """A named model fits by libvirt's own word; the host's own CPU only where the other host has the same."""
    cpu = next(case.every("cpu"), None)
    if cpu is None:
        return
    mode = cpu.attributes.get("mode", "custom")
    if mode in {"host-passthrough", "maximum"}:
        yield from _check_passthrough(case, cpu, mode)
    elif case.destination.cpu_error is not None:
        yield _incompatible(case, cpu, case.destination.cpu_error)
    else:
        yield from _check_model(case, cpu)


def _check_passthrough(case: Case, cpu: Element, mode: str) -> Iterator[Blocker]:
    there = case.destination
    if mode == "host-passthrough" and case.source_cpu is not None and case.source_cpu == there.host_cpu:
        return
    model = _proposal(case)
    known = case.source_cpu is not None and there.host_cpu is not None
    yield XmlBlocker(
        f"cpu.{mode}",
        f"domain {case.name} has the CPU of its host (mode {mode}), and {there.host}"
        f" {'has another one' if known else 'does not say which one it has'}",
        f"choose a host with the same CPU; or {_LATER}"
        + (f" (cpu model {model}, which {there.host} has)" * bool(model)),
        diff_of(case.domain, lambda copy_of: _name_model(copy_of(cpu), model)) if model else "",
    )


def _incompatible(case: Case, cpu: Element, words: str) -> Blocker:
    found = _MISSING.search(words)
    missing = [name.strip() for name in found[1].split(",")] if found else []

    def edit(copy_of: Lookup) -> None:
        copy = copy_of(cpu)
        for name in missing:
            same = [feature for feature in copy.findall("feature") if feature.get("name") == name]
            feature = same[0] if same else ET.SubElement(copy, "feature", {"name": name})
            feature.set("policy", "disable")

    return XmlBlocker(
        "cpu.features-missing" if missing else "cpu.refused",
        f"the CPU of domain {case.name} does not fit {case.destination.host}: {' '.join(words.split())}",
        f"choose another host; or {_LATER}" + (f" (without {', '.join(missing)})" if missing else ""),
        diff_of(case.domain, edit) if missing else "",
    )


def _check_model(case: Case, cpu: Element) -> Iterator[Blocker]:
    model, there = first(cpu, "model"), case.destination
    if model is None or not there.cpu_models or model.text in there.cpu_models:
        return
    other = _proposal(case)
    yield XmlBlocker(
        "cpu.refused",
        f"domain {case.name} has CPU model {model.text}, which {there.host} cannot run",
        f"choose another host; or {_LATER}" + (f" (cpu model {other}, which {there.host} has)" * bool(other)),
        diff_of(case.domain, lambda copy_of: _name_model(copy_of(cpu), other)) if other else "",
    )


def _proposal(case: Case) -> str:
    return next((name for name in PROPOSALS if name in case.destination.cpu_models), "")


def _name_model(cpu: ET.Element, model: str) -> None:
    """Make it a named model; its topology stays, features of the other CPU go."""
    for child in list(cpu):
        if child.tag in {"model", "feature", "vendor", "cache", "maxphysaddr"}:
            cpu.remove(child)
    cpu.attrib.clear()
    cpu.attrib.update({"mode": "custom", "match": "exact", "check": "partial"})
    named = ET.Element("model", {"fallback": "forbid"})
    named.text = model
    cpu.insert(0, named)

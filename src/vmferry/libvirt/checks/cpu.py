"""The CPU that the domain has seen must be there at the destination."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmferry.core.checks.cpu import PROPOSALS
from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import Case, XmlBlocker, first
from vmferry.libvirt.checks.editing import diff_by
from vmferry.libvirt.rewrites import disable_features, name_model
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
        yield from _check_passthrough(case, mode)
    elif case.destination.cpu_error is not None:
        yield _incompatible(case, case.destination.cpu_error)
    else:
        yield from _check_model(case, cpu)


def _check_passthrough(case: Case, mode: str) -> Iterator[Blocker]:
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
        _model_diff(case, model),
    )


def _incompatible(case: Case, words: str) -> Blocker:
    found = _MISSING.search(words)
    missing = [name.strip() for name in found[1].split(",")] if found else []

    return XmlBlocker(
        "cpu.features-missing" if missing else "cpu.refused",
        f"the CPU of domain {case.name} does not fit {case.destination.host}: {' '.join(words.split())}",
        f"choose another host; or {_LATER}" + (f" (without {', '.join(missing)})" if missing else ""),
        diff_by(case.domain, lambda xml: disable_features(xml, missing)) if missing else "",
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
        _model_diff(case, other),
    )


def _proposal(case: Case) -> str:
    return next((name for name in PROPOSALS if name in case.destination.cpu_models), "")


def _model_diff(case: Case, model: str) -> str:
    return diff_by(case.domain, lambda xml: name_model(xml, model)) if model else ""

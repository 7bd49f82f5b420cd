"""vCPUs and the CPU that they are.

Source: libvirt docs/formatdomain.rst (9.0), CPU Allocation and CPU model and topology; src/cpu_map/x86_features.xml for
the names that QEMU writes otherwise.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.guest import GuestSpec
from vmferry.libvirt.findings import Findings, short
from vmferry.libvirt.making import add
from vmferry.libvirt.tree import Element

CARRIED: Final = (
    ("vcpu", "`vcpus`"),
    ("cpu/model", "`cpu`: a named model; without one it is `qemu64`, libvirt's default"),
    ("cpu/feature", "`cpu`: `+NAME` for `require` and `force`, `-NAME` for `disable` and `forbid`"),
    ("cpu/topology", "one socket with all vCPUs as cores, as every guest has it"),
)

DEFAULT_MODEL = "qemu64"
MOST_VCPUS = 255
#: libvirt's names of features that are QEMU's with another spelling
_TO_QEMU = {"pclmuldq": "pclmulqdq"}
_FROM_QEMU = {
    "pclmulqdq": "pclmuldq",
    **{
        name.replace("_", "-"): name
        for name in (
            *("cmp_legacy", "ds_cpl", "fxsr_opt", "lahf_lm", "mbm_local", "mbm_total", "nodeid_msr"),
            *("perfctr_core", "perfctr_nb", "tsc_adjust"),
        )
    },
    **dict.fromkeys(("sse4-1", "sse4_1"), "sse4.1"),
    **dict.fromkeys(("sse4-2", "sse4_2"), "sse4.2"),
}
_POLICIES = {"require": "+", "force": "+", "disable": "-", "forbid": "-"}
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FEATURE = re.compile(r"[a-z0-9._-]+")
_ELSEWHERE = "import the running domain, whose XML names the model that it got; or name one that all hosts have"
_NAME_ONE = "write a model that all hosts have into the XML (virsh hypervisor-cpu-baseline finds one)"
#: modes that are another CPU on each host: why, and what to do
_MODES_REFUSED = {
    "host-model": ("the CPU is chosen anew by each host at each start", _ELSEWHERE),
    "host-passthrough": (
        "it is the CPU of the host where the guest runs, and no other host has exactly that one",
        _NAME_ONE,
    ),
    "maximum": ("it is everything that one host and one QEMU offer, which is another CPU elsewhere", _NAME_ONE),
}


def read_vcpus(domain: Element, found: Findings) -> int:
    """Return the number of vCPUs."""
    element = domain.one("vcpu")
    text = element.text.strip() if element is not None else "1"
    if element is None or not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= MOST_VCPUS:
        if element is not None:
            found.refuse(element, short(text), f"a guest has 1 to {MOST_VCPUS} vCPUs", "write another number")
        return 1
    online = element.get("current")
    if online not in {None, text}:
        fix = f"give it all {text} (virsh setvcpus), or write {online} into <vcpu> and <topology>"
        found.refuse(element, f"{short(online)} of {text}", "vCPUs that are plugged in later: not yet", fix)
    for each in domain.every("vcpus"):
        each.read_whole()
    return int(text)


def read_cpu(domain: Element, found: Findings, vcpus: int) -> str:
    """Return the CPU as a guest file names it."""
    element = domain.one("cpu")
    if element is None:
        _check_topology(None, domain, found, vcpus)
        return DEFAULT_MODEL
    _check_topology(element.one("topology"), element, found, vcpus)
    model = _read_model(element, found)
    return ",".join([model, *_read_features(element, found)])


def write_processors(spec: GuestSpec, root: ET.Element) -> None:
    """Write vCPUs, topology, model and features.

    By itself libvirt looks whether the host offers the CPU (check='partial'), and starts no guest with less.
    """
    add(root, "vcpu", str(spec.vcpus), placement="static")
    model, *features = spec.cpu.split(",")
    cpu = add(root, "cpu", mode="custom", match="exact")
    add(cpu, "model", model, fallback="forbid")
    add(cpu, "topology", sockets="1", dies="1", cores=str(spec.vcpus), threads="1")
    for name, on in dict(_switch(word) for word in features).items():
        add(cpu, "feature", policy="require" if on else "disable", name=_FROM_QEMU.get(name, name))


def _switch(word: str) -> tuple[str, bool]:
    """Return name and state of `+NAME`, `-NAME` or `NAME=on|off`."""
    if word[0] in "+-":
        return word[1:].replace("_", "-"), word[0] == "+"
    name, _, state = word.partition("=")
    return name.replace("_", "-"), state == "on"


def _check_topology(element: Element | None, where: Element, found: Findings, vcpus: int) -> None:
    """Ask when the guest sees other sockets and cores than all guests do; without a topology libvirt makes sockets."""
    names = ("sockets", "dies", "clusters", "cores", "threads")
    shape = {name: (element.get(name) if element is not None else None) or "1" for name in names}
    if element is None:
        shape["sockets"] = str(vcpus)
    if shape != {**dict.fromkeys(names, "1"), "cores": str(vcpus)} and (element is not None or vcpus > 1):
        seen = ", ".join(
            f"{short(number)[1:-1]} {name}" for name, number in shape.items() if name in names[:1] or number != "1"
        )
        found.ask(element or where, seen if element is not None else f"no topology: {seen}", "topology")


def _read_model(cpu: Element, found: Findings) -> str:
    mode, match = cpu.get("mode") or "custom", cpu.get("match") or "exact"
    if mode in _MODES_REFUSED:
        found.refuse(cpu, f"mode='{mode}'", *_MODES_REFUSED[mode])
        cpu.read_whole()
        return DEFAULT_MODEL
    model = cpu.one("model")
    if model is None:
        return DEFAULT_MODEL
    if match == "minimum":
        found.refuse(cpu, "match='minimum'", "the guest gets what its host has beyond the model", _ELSEWHERE)
    if not _MODEL.fullmatch(model.text):
        found.refuse(model, short(model.text), "it is no name of a CPU model", _ELSEWHERE)
    return model.text


def _read_features(cpu: Element, found: Findings) -> list[str]:
    words: dict[str, str] = {}
    for feature in cpu.every("feature"):
        name, policy = feature.get("name") or "", feature.get("policy") or "require"
        if policy not in _POLICIES or not _FEATURE.fullmatch(name):
            seen = f"{short(name)} policy={short(policy)}"
            found.refuse(feature, seen, "whether the guest has it depends on the host", _ELSEWHERE)
            continue
        name = _TO_QEMU.get(name, name).replace("_", "-")
        if name in words:
            found.refuse(feature, short(name), "it is there twice", "take one of the two out")
        words[name] = _POLICIES[policy] + name
    return list(words.values())

"""Whether a host's IOMMU is in use, and if not, whether its firmware or its kernel keeps it off. Pure.

Source: Linux Documentation/admin-guide/kernel-parameters.txt (intel_iommu, amd_iommu, iommu); ACPI tables DMAR (Intel
VT-d) and IVRS (AMD-Vi), which the firmware only has while it is switched on there.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

#: Tables of the firmware, and what the kernel has to be told. AMD's is on unless it is told otherwise.
OPTIONS = {"DMAR": ("intel_iommu=on", "iommu=pt"), "IVRS": ("iommu=pt",)}
_NAMES = {"DMAR": "VT-d", "IVRS": "AMD-Vi"}
_OFF = frozenset({"intel_iommu=off", "amd_iommu=off", "iommu=off"})


class IommuState(enum.StrEnum):
    """What stands in the way, in the order in which it is looked for."""

    READY = "ready"
    FIRMWARE = "firmware"  #: it is off there, or the machine has none
    FORBIDDEN = "forbidden"  #: the kernel is told not to use it
    KERNEL = "kernel"  #: the kernel is not told to use it
    REBOOT = "reboot"  #: it is from its next start on
    UNKNOWN = "unknown"  #: nothing that can be seen from here


@dataclass(frozen=True, slots=True)
class IommuFacts:
    """What is seen of it on a host."""

    tables: frozenset[str]  #: those of OPTIONS that the firmware has
    words: tuple[str, ...]  #: the running kernel's command line
    groups: int  #: that devices are in
    next_words: tuple[str, ...] = ()  #: what is told to the kernel from its next start on, as far as it is ours


@dataclass(frozen=True, slots=True)
class IommuFinding:
    """What it is like, and what to do."""

    state: IommuState
    what: str
    fix: str | None = None
    options: tuple[str, ...] = ()  #: to be added to the kernel's command line


def look_at(facts: IommuFacts) -> IommuFinding:
    """Return what stands in the way of the IOMMU, one thing at a time: the next shows when this one is gone."""
    if facts.groups:
        return IommuFinding(IommuState.READY, f"the IOMMU is in use: devices are in {facts.groups} groups")
    table = next((one for one in OPTIONS if one in facts.tables), None)
    if table is None:
        what = "the firmware has no IOMMU (neither table DMAR nor IVRS)"
        fix = "switch on VT-d (Intel) or AMD-Vi, also called IOMMU, in the firmware's set-up; in a VM, give it one"
        return IommuFinding(IommuState.FIRMWARE, what, fix)
    name = _NAMES[table]
    if off := [word for word in facts.words if word in _OFF]:
        what = f"the firmware has {name}, and the kernel is told not to use it ({' '.join(off)})"
        return IommuFinding(IommuState.FORBIDDEN, what, "take that from the kernel's command line, and reboot")
    missing = _missing(OPTIONS[table], facts.words)
    if not missing or (table == "IVRS" and not facts.next_words):
        what = f"the firmware has {name}, the kernel may use it, and does not"
        return IommuFinding(IommuState.UNKNOWN, what, "see `dmesg | grep -i -e dmar -e iommu -e amd-vi`")
    if not _missing(missing, facts.next_words):
        what = f"the kernel uses {name} from its next start on"
        return IommuFinding(IommuState.REBOOT, what, "reboot, and ask again")
    what = f"the firmware has {name}, and the kernel is not told to use it"
    fix = "`vmferry host prepare --iommu --write` tells it from its next start on"
    return IommuFinding(IommuState.KERNEL, what, fix, missing)


def _missing(wanted: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    return tuple(one for one in wanted if one not in words)

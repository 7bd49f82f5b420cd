"""Writes the tables of docs/libvirt.md: `python -m vmferry.libvirt.reference docs/libvirt.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from vmferry.libvirt import boot, consoles, disks, identity, memory, nics, platform, processors, tpm
from vmferry.libvirt.findings import ACCEPTABLE, Effect
from vmferry.libvirt.rules import RULES

_CARRIED = (identity, memory, processors, boot, platform, disks, nics, consoles, tpm)
#: What is asked for by comparing with what every guest has, not by a rule.
_COMPARED = {
    "address": ("devices/*/address[type=pci]", "devices/*/acpi"),
    "boot": ("os/boot", "devices/*/boot"),
    "cdrom": ("devices/disk[device=cdrom]",),
    "clock": ("clock/@offset", "clock/@adjustment"),
    "features": ("features/acpi", "features/smm"),
    "timer": ("clock/timer",),
    "topology": ("vcpu", "cpu/topology"),
    "tpm": ("devices/tpm",),
}
_MARK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated() -> dict[str, str]:
    """Return each generated part of the page by its name."""
    return {
        "carried": _table(("In the XML", "In the guest file"), _carried()),
        "accept": _table(("`--accept`", "What the guest loses", "In the XML"), _accepted()),
        "left_out": _table(("In the XML", "What becomes of it"), _of(Effect.LEFT_OUT)),
        "silent": _table(("In the XML", "Why nothing is lost"), _of(Effect.SILENT)),
        "refused": _table(("In the XML", "Why", "What to do"), _of(Effect.REFUSED)),
    }


def updated(page: str) -> str:
    """Return the page with its generated parts made anew.

    Raises:
        KeyError: it has a mark of a part that nothing makes.
    """
    parts = generated()
    return _MARK.sub(lambda mark: f"{mark[1]}\n{parts[mark[2]]}\n{mark[3]}", page)


def _carried() -> Iterator[tuple[str, ...]]:
    for module in _CARRIED:
        for where, what in module.CARRIED:
            yield f"`{where}`", what


def _accepted() -> Iterator[tuple[str, ...]]:
    for name, what in ACCEPTABLE.items():
        keys = [*_COMPARED.get(name, ()), *(key for key, rule in RULES.items() if rule.accept == name)]
        yield f"`{name}`", what, ", ".join(f"`{key}`" for key in keys)


def _of(effect: Effect) -> Iterator[tuple[str, ...]]:
    """Yield the rules of an effect, those that say the same in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for key, rule in RULES.items():
        if rule.effect is effect:
            rows.setdefault((rule.what, rule.fix) if rule.fix else (rule.what,), []).append(f"`{key}`")
    for said, keys in rows.items():
        yield ", ".join(keys), *said


def _table(headings: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return (
        "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])
        + "\n"
    )


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(updated(file.read_text("utf-8")), "utf-8")

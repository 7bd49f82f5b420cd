"""What is wrong with capabilities that somebody else put together, by the tables that we choose by."""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.capabilities.features import BY_NAME, Kind, Version, version_text
from vmferry.core.capabilities.rules import EXCLUSIONS, REQUIREMENTS


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why they do not go together, and what to do."""

    what: str
    fix: str


def find_conflict(on: frozenset[str], version: Version) -> Conflict | None:
    """Return the first thing that keeps them from working on this version; None: the tables know of nothing.

    Args:
        on: capabilities that are on, and `tls` for an encrypted stream. What needs a transport is not looked at: that
            is not known here.
        version: of the QEMU: it only selects rows.
    """
    return _never_used(on) or _excluded(on, version) or _needed(on)


def _never_used(on: frozenset[str]) -> Conflict | None:
    for name in sorted(on & BY_NAME.keys()):
        if (why := BY_NAME[name].never) is not None:
            return Conflict(f"migration capability {name} is never used: {why}", "leave it out")
    return None


def _excluded(on: frozenset[str], version: Version) -> Conflict | None:
    for rule in EXCLUSIONS:
        if {rule.one, rule.other} <= on and rule.unless not in on and (verdict := rule.verdict(version)):
            where = f"QEMU {version_text(version)}"
            what = f"{rule.one} and {rule.other} exclude each other on {where}: {rule.why} ({verdict})"
            return Conflict(what, f"choose {rule.one} or {rule.other}")
    return None


def _needed(on: frozenset[str]) -> Conflict | None:
    for rule in REQUIREMENTS:
        if rule.user in on and rule.needs not in on and BY_NAME[rule.needs].kind is Kind.CAPABILITY:
            return Conflict(f"migration capability {rule.user} needs {rule.needs}: {rule.why}", f"use {rule.needs}")
    return None

"""Writes docs/capabilities.md: `python -m vmferry.qemu.reference > docs/capabilities.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmferry.core.capabilities.features import FEATURES, Feature, version_text
from vmferry.core.capabilities.rules import EXCLUSIONS, HOST_NEEDS, REQUIREMENTS, Exclusion, Span

_INTRODUCTION = """\
# What a migration is set to

<!-- Written by `python -m vmferry.qemu.reference`; a test keeps it current. -->

QEMU fixes the capabilities of a migration when it starts, and both sides must have the same. So they are chosen before
the start (`core/capabilities/`), for both QEMUs at once, from the tables on this page. QEMU's own checks are not
enough: 7.2 accepts combinations that fail, hang or do nothing later. Whether a QEMU *has* something is asked over QMP;
versions only select the rules below. A rule that holds for one of the two QEMUs holds for the migration.

- **Required or preferred.** What is required and cannot be had is a blocker: the move does not start. What is preferred
  and cannot be had is left out. Either way the reason is told: which QEMU lacks it, which host does not offer what it
  needs, or what excludes it.
- **Who gives way.** First what is required, with what it needs of the wish, then what is preferred; among equals the
  order of the first table. Of two that exclude each other the earlier one stays: the hand-over itself, then what makes
  the guest arrive at all (post-copy, throttling), then what makes it arrive sooner (channels, compression).
- **Given, not wished.** Transport and encryption are never dropped for something else. If they do not go together, the
  move does not start.
- **Nothing is added.** What needs something that nobody asked for is left out, and says what it needs.
- **Nothing is left behind.** Parameters that nobody asked for are set to QEMU's default, so that an attempt does not
  inherit them from the one before.
- **A change of mind** is cancel and start again. Its price is told before: bytes and time lost, as measured; set-up and
  first round again, as the first time or, while the first round runs, estimated and marked so.

## What there is
"""

_VERDICTS = """\
"Refused": QEMU says no. "Accepted, fails later": the migration fails or hangs, or a process dies; we refuse it for
these versions too. "Accepted, without effect": one of the two does nothing. "Our choice": QEMU may do it, we do not.
"""


def render() -> str:
    """Return the page; the same text each time."""
    parts = [_INTRODUCTION, _table(("Name", "Kind", "Since", "What it is"), map(_feature, FEATURES))]
    parts += ["\n## What excludes what\n", _VERDICTS]
    parts.append(_table(("One", "Other", "QEMU", "Why", "Source"), map(_exclusion, EXCLUSIONS)))
    parts.append("\n## What needs what\n")
    rows = [(f"`{r.user}`", f"`{r.needs}`", _spans(r.spans), r.why, r.source) for r in REQUIREMENTS]
    parts.append(_table(("This", "needs this", "QEMU without it", "Why", "Source"), rows))
    parts.append("\n## What needs something of a host\n")
    parts.append(
        _table(
            ("This", "needs", "at", "Source"),
            [
                (
                    f"`{n.user}`",
                    str(n.resource),
                    n.where,
                    n.source,
                )
                for n in HOST_NEEDS
            ],
        )
    )
    return "\n".join(parts) + "\n"


def _feature(feature: Feature) -> tuple[str, ...]:
    since = "always" if feature.since == (0, 0) else version_text(feature.since)
    removed = "" if feature.removed is None else f", removed in {version_text(feature.removed)}"
    words = [feature.what]
    words += [f"{feature.values}; default {str(feature.default).lower()}"] if feature.values is not None else []
    words += [f"**never chosen**: {feature.never}"] if feature.never is not None else []
    return f"`{feature.name}`", str(feature.kind), f"{since}{removed}", ". ".join(words)


def _exclusion(rule: Exclusion) -> tuple[str, ...]:
    unless = "" if rule.unless is None else f", unless `{rule.unless}` is on"
    return f"`{rule.one}`", f"`{rule.other}`", f"{_spans(rule.spans)}{unless}", rule.why, rule.source


def _spans(spans: Iterable[Span]) -> str:
    return "; ".join(f"{_versions(span)}{span.verdict}" for span in spans)


def _versions(span: Span) -> str:
    parts = [f"from {version_text(span.since)}"] if span.since else []
    parts += [f"before {version_text(span.until)}"] if span.until is not None else []
    return f"{' and '.join(parts)}: " if parts else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(render(), end="")  # noqa: T201 - what it is for

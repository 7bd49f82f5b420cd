"""Progress as plain lines, for logs and pipes: one line per state, per round, and now and then one per reading."""

from __future__ import annotations

from vmferry.cli.render.measures import has_measures, measures_text
from vmferry.cli.render.scene import Scene
from vmferry.cli.render.words import (
    disks_text,
    finished_text,
    order_text,
    policy_text,
    rest_text,
    round_text,
    step_text,
    title,
)
from vmferry.core.progress import (
    DisksCopied,
    Finished,
    PolicyBegan,
    PolicyOrdered,
    Progress,
    ProgressEvent,
    RoundEnded,
    StateEntered,
)
from vmferry.core.units import format_bytes, format_ms, format_rate

#: Readings come five times a second; a log wants one now and then.
READING_EVERY_MS = 2000


def plain_lines(  # noqa: PLR0911 - one for each event
    before: Scene, after: Scene, event: ProgressEvent
) -> list[str]:
    """Return the lines that one event adds, most of the time one or none.

    Args:
        before: the scene before the event.
        after: the scene with it.
        event: what happened.
    """
    stamp = f"[{event.at_ms / 1000:8.3f} s]"
    match event:
        case StateEntered():
            why = f" ({event.why})" if event.why else ""
            return [f"{stamp} {step_text(after)}: {event.state}, owner {event.owner}{why}"]
        case RoundEnded():
            return [f"{stamp} {round_text(event)}"]
        case DisksCopied():
            last = before.disks
            return [f"{stamp} {disks_text(event)}"] if last is None or _is_later(last.at_ms, event.at_ms) else []
        case Progress():
            return [f"{stamp} {_reading(after, event)}"] if _is_due(before, after, event) else []
        case PolicyBegan():
            return [f"{stamp} {policy_text(event)}"]
        case PolicyOrdered():
            return [f"{stamp} {order_text(event)}"]
        case Finished():
            return [f"{stamp} {finished_text(after, event)}", *_blockers(event), *_report(after, event)]


def _is_due(before: Scene, after: Scene, event: Progress) -> bool:
    """Tell whether a reading is worth a line: some time after the last one, or the time left grew."""
    if after.why_longer is not None and after.why_longer != before.why_longer:
        return True
    last = before.progress
    return last is None or _is_later(last.at_ms, event.at_ms)


def _is_later(before_ms: float, now_ms: float) -> bool:
    return int(before_ms // READING_EVERY_MS) != int(now_ms // READING_EVERY_MS)


def _reading(scene: Scene, event: Progress) -> str:
    text = (
        f"round {event.round}: {format_bytes(event.remaining_bytes)} of {format_bytes(event.total_bytes)} left,"
        f" {format_rate(event.bandwidth)}, dirtying {format_rate(event.dirty_bytes_per_second)}, rest / limit"
        f" {rest_text(event.expected_downtime_ms, event.downtime_limit_ms)}: {event.verdict}"
    )
    if scene.time_left_ms is not None:
        text += f", about {format_ms(scene.time_left_ms)} left"
    if scene.why_longer is not None:
        text += f" (longer: {scene.why_longer})"
    return text


def _blockers(event: Finished) -> list[str]:
    return [f"  {blocker.code}: {blocker.what}; {blocker.fix}" for blocker in event.blockers]


def _report(scene: Scene, event: Finished) -> list[str]:
    if event.report is None or not has_measures(event.report):
        return []
    return [f"measured, {title(scene)}:", *measures_text(event.report).splitlines()]

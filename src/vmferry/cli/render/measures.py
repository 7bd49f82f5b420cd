"""The measures of a finished hand-over as rows of name and value; what nobody measured says so."""

from __future__ import annotations

from collections.abc import Callable

from vmferry.core.progress import Gap, Outcome, Report, Throttled
from vmferry.core.units import format_bytes, format_ms, format_rate

NOT_MEASURED = "not measured"


def measures(report: Report) -> list[tuple[str, str]]:
    """Return every measure of a report, in the order in which people ask for them."""
    rows = [(name, value(report)) for name, value in ROWS]
    if report.disks:
        rows.append(("disks copied", _disks(report)))
    if report.write_throttle is not None:
        rows.append(("write throttle", _throttle(report.write_throttle)))
    return rows


def has_measures(report: Report) -> bool:
    """Tell whether anything was sent at all; before that there is nothing to measure."""
    return bool(report.transferred_bytes or report.disk_bytes) or report.outcome is Outcome.MOVED


def measures_text(report: Report) -> str:
    """Return the measures as plain lines with aligned values."""
    rows = measures(report)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows)


def _optional(milliseconds: float | None) -> str:
    return NOT_MEASURED if milliseconds is None else format_ms(milliseconds)


def _gap(gap: Gap | None) -> str:
    if gap is None:
        return NOT_MEASURED
    if gap.baseline_ms is None:
        baseline = NOT_MEASURED
    else:
        window = "" if gap.baseline_window_ms is None else f" in {format_ms(gap.baseline_window_ms)}"
        baseline = f"{format_ms(gap.baseline_ms)}{window}"
    least = "" if gap.ended else "at least "
    return f"{least}{format_ms(gap.largest_ms)} ± {format_ms(gap.uncertainty_ms)} (without a migration: {baseline})"


def _guest_gap(report: Report) -> str:
    twice = f"; THE GUEST RAN TWICE for {format_ms(report.ran_twice_ms)}" if report.ran_twice_ms else ""
    return _gap(report.guest_gap) + twice


def _network_moved(report: Report) -> str:
    """Return when the source's bridge knew where the guest is."""
    if report.announced_again is None:
        return NOT_MEASURED
    again = f" (announced {report.announced_again} times more)" if report.announced_again else ""
    if report.network_moved_ms is None:
        return f"the source's bridge had not heard of the guest's new place after two seconds{again}"
    return f"{format_ms(report.network_moved_ms)} after it runs, at the source's bridge{again}"


def _sent(report: Report) -> str:
    if report.transferred_bytes is None:
        return NOT_MEASURED
    ram = "" if report.ram_bytes is None else f" for {format_bytes(report.ram_bytes)} of RAM"
    return format_bytes(report.transferred_bytes) + ram


def _downtime(report: Report) -> str:
    return f"{_optional(report.downtime_ms)} (limit {format_ms(report.downtime_limit_ms)})"


def _throttle(seen: Throttled) -> str:
    uncovered = f" ({seen.uncovered} more could not be)" if seen.uncovered else ""
    return (
        f"{seen.writes} writes per {seen.slot_ms} ms, processes slowed: {seen.processes}{uncovered}; held {seen.held},"
        f" longest {format_ms(seen.longest_hold_ms)}"
    )


def _switchover(report: Report) -> str:
    """Return which rule fired, and the pages that were left then and sent while the guest stood still."""
    if report.switchover_rule is None:
        return NOT_MEASURED
    decided = NOT_MEASURED if report.pages_at_decision is None else f"{report.pages_at_decision} pages"
    stopped = NOT_MEASURED if report.pages_at_stop is None else f"{report.pages_at_stop} pages"
    return f"{report.switchover_rule}; at the decision {decided}, at the stop {stopped}"


def _policy(report: Report) -> str:
    text = "; ".join([report.policy or NOT_MEASURED, *(f"left out: {one}" for one in report.left_out)])
    return text if report.restart_price is None else f"{text}; another attempt: {report.restart_price}"


def _stream(report: Report) -> str:
    """Return how it travelled: link, channels where there are several, compression where there is one."""
    channels = [f"{report.channels} channels"] if (report.channels or 1) > 1 else []
    compression = [report.compression] if report.compression != "none" else []
    link = report.link if report.pipeline is None else f"pipeline {report.pipeline}"
    text = ", ".join([link, *channels, *compression])
    return text if report.compression_why is None else f"{text}; compression: {report.compression_why}"


def _encrypted(report: Report) -> str:
    if not report.encrypted:
        return "no"
    return "yes, by certificates" if report.encryption == "x509" else "yes"


def _disks(report: Report) -> str:
    copied = NOT_MEASURED if report.disk_bytes is None else format_bytes(report.disk_bytes)
    text = f"{copied}, not all" if report.disks_ms is None else f"{copied} in {format_ms(report.disks_ms)}"
    if report.outcome not in (Outcome.MOVED, Outcome.LOST):
        return f"{text}; the copies were removed, another attempt copies all of it again"
    aside = ", ".join(f"{path}.left-{report.handover}" for path in report.disks)
    newest = f"; the guest's disks are the copies on {report.destination}" if report.outcome is Outcome.LOST else ""
    return f"{text}{newest}; {report.source} keeps {aside}"


def _commit(report: Report) -> str:
    parts = ", ".join(f"{name} {format_ms(value)}" for name, value in report.commit_parts_ms.items())
    return _optional(report.commit_ms) + (f" ({parts})" if parts else "")


#: (name, how it is read); the names are the project's vocabulary.
ROWS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("total time", lambda report: _optional(report.total_ms)),
    ("to the first byte", lambda report: _optional(report.first_byte_ms)),
    ("policy", _policy),
    ("switchover", _switchover),
    ("rounds", lambda report: NOT_MEASURED if report.rounds is None else str(report.rounds)),
    ("sent", _sent),
    ("bandwidth", lambda report: NOT_MEASURED if report.bandwidth is None else format_rate(report.bandwidth)),
    ("stream", _stream),
    ("encrypted", _encrypted),
    ("downtime (QEMU)", _downtime),
    ("guest_gap (beats)", _guest_gap),
    ("network_outage (UDP)", lambda report: _gap(report.network_outage)),
    ("network knows", _network_moved),
    ("stall in the guest", lambda report: _optional(report.in_guest_stall_ms)),
    ("commit", _commit),
    ("acceleration", lambda report: report.acceleration),
    ("guarantee", lambda report: report.guarantee),
)

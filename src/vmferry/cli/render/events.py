"""JSON lines of a watch -> the core's facts. A line of a newer agent with an event that we do not know is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vmferry.core.errors import Broken
from vmferry.core.progress import (
    DisksCopied,
    Finished,
    PolicyBegan,
    PolicyOrdered,
    Progress,
    ProgressEvent,
    Report,
    RoundEnded,
    StateEntered,
)

_KINDS: dict[str, TypeAdapter[Any]] = {
    "state": TypeAdapter(StateEntered),
    "disks": TypeAdapter(DisksCopied),
    "progress": TypeAdapter(Progress),
    "round": TypeAdapter(RoundEnded),
    "policy": TypeAdapter(PolicyBegan),
    "order": TypeAdapter(PolicyOrdered),
    "finished": TypeAdapter(Finished),
}
_REPORT = TypeAdapter(Report)


def parse_event(line: Mapping[str, Any]) -> ProgressEvent | None:
    """Return the event of one line; None for an event that this version does not know.

    Raises:
        Broken: the line says to be an event that we know and is not.
    """
    kind = _KINDS.get(str(line.get("event")))
    if kind is None:
        return None
    try:
        event: ProgressEvent = kind.validate_python(line)
    except ValidationError as error:
        raise _unreadable(f"a {line['event']!r} event", error) from error
    return event


def parse_report(body: Mapping[str, Any]) -> Report:
    """Return the report of a finished hand-over.

    Raises:
        Broken: it is none.
    """
    try:
        return _REPORT.validate_python(body)
    except ValidationError as error:
        raise _unreadable("a report", error) from error


def _unreadable(what: str, error: ValidationError) -> Broken:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return Broken(
        f"the agent sent {what} that this command cannot read: {key}: {first['msg']}",
        fix="use the same version of vmferry here and on the hosts; the migration itself goes on",
    )

"""Errors over HTTP (RFC 9457), both ways: what an agent raises is what its client raises.

Standard library only: the command line needs it before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmferry.core.errors import Blocked, Blocker, Broken, Denied, VmferryError

CONTENT_TYPE = "application/problem+json"


def to_problem(error: VmferryError, status: int | None = None) -> dict[str, object]:
    """Return the problem body of an error.

    Args:
        error: what happened.
        status: HTTP status, where HTTP has a better one than the error's class.
    """
    return {
        "type": f"urn:vmferry:problem:{error.code}",
        "title": (type(error).__doc__ or error.code).partition("\n")[0],
        "status": error.http_status if status is None else status,
        "detail": str(error),
        **error.problem(),
    }


def from_problem(body: object, status: int, host: str) -> VmferryError:
    """Return the error that an agent raised; a body that is no problem becomes Broken or Denied.

    Args:
        body: the decoded JSON body, whatever it is.
        status: the HTTP status.
        host: who answered, for the text.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("what"), str):
        if status in {401, 403}:
            return Denied(f"Agent of {host} denied the request (HTTP {status})")
        return Broken(f"Agent of {host} answered HTTP {status} with a body that is no problem description")
    kind = _CLASSES.get(str(body.get("code")), Broken)
    error = kind(
        str(body["what"]),
        owner=_text(body.get("owner")),
        fix=_text(body.get("fix")),
        side=_text(body.get("side")),
        retry=body.get("retry") is True,
    )
    if isinstance(error, Blocked):
        error.blockers = tuple(_blockers(body.get("blockers")))
    return error


def _blockers(rows: object) -> Iterator[Blocker]:
    """Yield the blockers of a problem body; malformed ones are left out."""
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, Mapping):
            yield Blocker(str(row.get("code", "")), str(row.get("what", "")), str(row.get("fix", "")))


def _text(value: object) -> str | None:
    """Return a text, None for anything else."""
    return value if isinstance(value, str) else None


def _tree(kind: type[VmferryError]) -> Iterator[type[VmferryError]]:
    """Yield a class and all its subclasses."""
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


_CLASSES: dict[str, type[VmferryError]] = {kind.code: kind for kind in _tree(VmferryError)}

"""From method and path to a route of the table, and from bytes to its body and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vmferry.api.bases import Request
from vmferry.api.routes import Route
from vmferry.core.errors import BadInput, NotFound
from vmferry.core.ids import is_name

_HANDOVER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: So many complaints about one body are told; the rest is counted.
_MOST_COMPLAINTS = 8


class WrongMethod(BadInput):
    """The path exists, for other methods."""

    allowed: tuple[str, ...] = ()


class Table:
    """Finds routes.

    Args:
        routes: all of them.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._by_length: dict[int, list[tuple[list[str], Route]]] = {}
        self._replies: dict[Route, TypeAdapter[Any]] = {}
        for route in routes:
            parts = route.path.split("/")
            self._by_length.setdefault(len(parts), []).append((parts, route))
            if route.response is not None:
                self._replies[route] = TypeAdapter(route.response)

    def match(self, method: str, path: str) -> tuple[Route, list[str]]:
        """Return the route and the arguments in its path.

        Raises:
            NotFound: there is no such path.
            WrongMethod: there is, for other methods.
        """
        parts = path.split("/")
        allowed = []
        for pattern, route in self._by_length.get(len(parts), ()):
            arguments = _fit(pattern, parts)
            if arguments is None:
                continue
            if route.method == method:
                return route, arguments
            allowed.append(route.method)
        if allowed:
            error = WrongMethod(f"{method} is not known at {path[:200]}, known: {', '.join(allowed)}")
            error.allowed = tuple(allowed)
            raise error
        raise NotFound(f"There is nothing at {path[:200]}", fix="see GET /v1/openapi.json")

    def dump(self, route: Route, reply: object) -> bytes:
        """Return a reply's JSON."""
        return self._replies[route].dump_json(reply)


def load_body(model: type[Request], content: bytes) -> Request:
    """Return a request's body.

    Raises:
        BadInput: it is not JSON, or not what the route takes; names every key that is wrong, never its value.
    """
    try:
        return model.model_validate_json(content or b"{}")
    except ValidationError as error:
        raise BadInput(f"Request body is not right: {explain(error)}", fix="see GET /v1/openapi.json") from None


def explain(error: ValidationError) -> str:
    """Return what is wrong with which key; values are left out, since they may be secret."""
    rows = error.errors(include_url=False, include_context=False, include_input=False)
    texts = []
    for row in rows[:_MOST_COMPLAINTS]:
        key = ".".join(str(part) for part in row["loc"])
        unknown = row["type"] in {"extra_forbidden", "unexpected_keyword_argument"}
        texts.append(f"{key}: {'unknown key' if unknown else row['msg']}" if key else row["msg"])
    if len(rows) > _MOST_COMPLAINTS:
        texts.append(f"and {len(rows) - _MOST_COMPLAINTS} more")
    return "; ".join(texts)


def _fit(pattern: list[str], parts: list[str]) -> list[str] | None:
    """Return the arguments when the parts fit the pattern, else None.

    Raises:
        NotFound: an argument cannot be a name of anything.
    """
    arguments = []
    for wanted, part in zip(pattern, parts, strict=True):
        if not wanted.startswith("{"):
            if wanted != part:
                return None
            continue
        if not (is_name(part) if wanted == "{name}" else _HANDOVER_ID.fullmatch(part)):
            what = "guest" if wanted == "{name}" else "hand-over"
            raise NotFound(f"There is no {what} {part[:80]!r}: that cannot be its name")
        arguments.append(part)
    return arguments

"""The OpenAPI 3.1 page, made from the route table and the models.

Run `python -m vmferry.api.openapi > docs/openapi.json` after a change of either; a test holds the file current.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Literal

from pydantic import TypeAdapter

from vmferry import __version__
from vmferry.api.models import PROTOCOL, Problem
from vmferry.api.problems import CONTENT_TYPE
from vmferry.api.routes import ROUTES, Access, Route, Shape
from vmferry.core.ids import NAME_PATTERN

_REF = "#/components/schemas/{model}"
_TAGS = {
    Access.READ: "operators",
    Access.OPERATE: "operators",
    Access.PEER: "agent to agent",
    Access.MEMBER: "fleet",
}
_WHO = {
    Access.READ: "Operators of either role.",
    Access.OPERATE: "Operators with the role operate.",
    Access.PEER: "Enrolled hosts.",
    Access.MEMBER: "Every member of the fleet.",
}
_DESCRIPTION = (
    "An agent of vmferry. Every request needs a client certificate of the fleet (mutual TLS 1.3); "
    f"each route says who may use it. Errors are problem bodies (RFC 9457). Agent-to-agent protocol: {PROTOCOL}."
)


def make_page() -> dict[str, Any]:
    """Return the page."""
    inputs: list[tuple[Any, Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        (Problem, "serialization", TypeAdapter(Problem))
    ]
    for route in ROUTES:
        if route.request is not None:
            inputs.append((route, "validation", TypeAdapter(route.request)))
        if route.response is not None:
            inputs.append((route, "serialization", TypeAdapter(route.response)))
    schemas, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        request, response = schemas.get((route, "validation")), schemas.get((route, "serialization"))
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, request, response)
    return {
        "openapi": "3.1.0",
        "info": {"title": "vmferry agent", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"certificate": {"type": "mutualTLS", "description": "Certificate of the fleet's CA."}},
        },
        "security": [{"certificate": []}],
    }


def render_page() -> str:
    """Return the page as it stands in docs/."""
    return json.dumps(make_page(), indent=1, sort_keys=True) + "\n"


def _operation(route: Route, request: Any, response: Any) -> dict[str, Any]:
    """Return the description of one route."""
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "description": _WHO[route.access],
        "tags": [_TAGS[route.access]],
        "responses": {
            str(route.status): _answer(route, response),
            "default": {
                "description": "An error.",
                "content": {CONTENT_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
            },
        },
    }
    parameters = [_parameter(name) for name in re.findall(r"\{(\w+)\}", route.path)]
    if parameters:
        operation["parameters"] = parameters
    if request is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": request}}}
    return operation


def _answer(route: Route, schema: Any) -> dict[str, Any]:
    """Return the description of a route's good answer."""
    if route.shape is Shape.SOCKET:
        return {"description": "A WebSocket; binary messages both ways."}
    if schema is None:
        return {"description": "Done."}
    if route.shape is Shape.LINES:
        text = "One JSON object per line; empty lines mean that nothing happened for a while."
        return {"description": text, "content": {"application/x-ndjson": {"schema": schema}}}
    return {"description": "The answer.", "content": {"application/json": {"schema": schema}}}


def _parameter(name: str) -> dict[str, Any]:
    """Return the description of one part of a path."""
    pattern = NAME_PATTERN if name == "name" else "^[A-Za-z0-9_-]{1,64}$"
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}


if __name__ == "__main__":
    sys.stdout.write(render_page())

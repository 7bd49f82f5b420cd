"""The OpenAPI page is valid, current, and says the same as the table."""

from __future__ import annotations

import json
from pathlib import Path

from openapi_spec_validator import validate

from vmferry.agent.service_port import AgentService, FleetService
from vmferry.api.openapi import make_page, render_page
from vmferry.api.routes import ROUTES, Shape

PAGE = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_page_is_valid() -> None:
    """The page is OpenAPI 3.1."""
    validate(json.loads(render_page()))


def test_page_is_current() -> None:
    """docs/openapi.json is what the code makes; `python -m vmferry.api.openapi > docs/openapi.json` renews it."""
    assert PAGE.read_text("utf-8") == render_page()


def test_every_route_stands_in_the_page() -> None:
    """The page has each route of the table and no other, with its body and its answer."""
    paths = make_page()["paths"]
    assert sum(len(methods) for methods in paths.values()) == len(ROUTES)
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        assert ("requestBody" in operation) == (route.request is not None)
        answer = operation["responses"][str(route.status)]
        assert ("content" in answer) == (route.response is not None and route.shape is not Shape.SOCKET)


def test_requests_refuse_unknown_keys() -> None:
    """Every object that a request is made of refuses unknown keys, also those that replies use too."""
    page = make_page()
    schemas = page["components"]["schemas"]
    todo = [
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for methods in page["paths"].values()
        for operation in methods.values()
        if "requestBody" in operation
    ]
    seen: set[str] = set()
    while todo:
        name = todo.pop().rpartition("/")[2]
        if name in seen:
            continue
        seen.add(name)
        schema = schemas[name]
        if schema.get("type") == "object":
            assert schema.get("additionalProperties") is False, name
        todo += find_references(schema)
    assert {"FrozenGuest", "MigrationSetup"} <= seen


def find_references(schema: object) -> list[str]:
    """Return every reference in a schema."""
    if isinstance(schema, dict):
        own = [schema["$ref"]] if "$ref" in schema else []
        return own + [found for value in schema.values() for found in find_references(value)]
    if isinstance(schema, list):
        return [found for value in schema for found in find_references(value)]
    return []


def test_every_route_has_its_method() -> None:
    """Each route names a method of the service it belongs to, and no method is without a route."""
    own = {"start", "settle", "close"}
    for protocol, fleet in ((AgentService, False), (FleetService, True)):
        methods = {name for base in protocol.__mro__ for name in vars(base) if not name.startswith("_")} - own
        assert {route.handler for route in ROUTES if route.fleet == fleet} == methods

"""The page about the guest file is the model, and its schema accepts what the loader accepts."""

from __future__ import annotations

import tomllib
from pathlib import Path

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from vmferry.guestfile.reference import json_schema, render

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    """docs/guest-file.md is what the model gives: write it anew after a change of the model."""
    assert (ROOT / "docs" / "guest-file.md").read_text() == render()


def test_the_schema_accepts_the_examples_and_refuses_mistakes() -> None:
    """An editor with the schema shows the examples as fine and an alias, an unknown key and a wrong type as not."""
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for path in (ROOT / "examples").glob("*.toml"):
        document = tomllib.loads(path.read_text())
        assert list(validator.iter_errors(document)) == []
        for mistake in ({"machine": "q35"}, {"memroy": 1}, {"vcpus": "2"}, {"cpu": "host"}):
            assert not validator.is_valid({**document, **mistake})

"""Words that the API takes: those of the core, which the command line offers."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from vmferry.api.models import MigrateOptions
from vmferry.core.capabilities import LINKS, Compression, Encryption


@pytest.mark.parametrize(
    ("field", "words"), [("link", LINKS), ("compression", Compression), ("encryption", Encryption)]
)
def test_the_api_takes_every_word_of_the_core(field: str, words: Any) -> None:
    """None more, none less: what is offered on the command line is not refused by the agent."""
    annotation = MigrateOptions.model_fields[field].annotation
    literals = list(itertools.chain.from_iterable(get_args(one) for one in get_args(annotation)))
    assert literals == [str(word) for word in words]

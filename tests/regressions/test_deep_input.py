"""Numbers, keys, bodies and lines beyond all measure made tracebacks, or took memory and time without bound."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import cast

import pytest
from tests.convergence.kit import FACTS

from vmferry.agent import peer_client
from vmferry.api import client
from vmferry.cli.policies import _read
from vmferry.core.convergence import Goal, trace
from vmferry.core.convergence.trace import MOST_LINES, Trace, decode, encode
from vmferry.core.errors import BadInput, Broken
from vmferry.guestfile import GuestFileInvalid, parse_guest_file


def test_a_number_that_is_too_large_for_a_float_is_told() -> None:
    """A whole number of 401 digits is out of its range like any other, and not told in full."""
    end = json.dumps({"t": "end", "at_ms": 10**400, "how": "x"})
    with pytest.raises(BadInput, match="line 2: at_ms is 10+, not within -1e\\+12 to 1e\\+12") as caught:
        decode([*encode(Trace("qemu", FACTS, Goal(), ())), end], "run.ndjson")
    assert len(caught.value.what) < 200


@pytest.mark.parametrize("key", ["name." + "a." * 3000 + "a", "a." * 8 + "a", "[boot." + "a." * 3000 + "a]"])
def test_a_key_of_thousands_of_parts_is_a_mistake_with_its_line(key: str) -> None:
    """A guest file with a key longer than any of its own is refused before anything is made of it."""
    with pytest.raises(GuestFileInvalid, match="web-7.toml:2: \\(syntax\\): a key of more than 8 parts"):
        parse_guest_file(f'memory = "32 MiB"\n{key}' + ("\n" if key[0] == "[" else " = 1\n"), "web-7.toml")


def test_inline_tables_do_not_make_it_deeper() -> None:
    """Dotted keys inside of each other add up: no document that is made is deep enough for a RecursionError."""
    text = "a.a.a.a.a.a.a.a = { " * 200 + "a = 1" + " }" * 200
    with pytest.raises(GuestFileInvalid, match="more than 8 parts"):
        parse_guest_file(text)


@pytest.mark.parametrize("decoded", [client._json, peer_client._json])
def test_a_body_of_brackets_is_no_json(decoded: object) -> None:
    """What is too deep for Python's decoder is no answer of an agent."""
    assert callable(decoded)
    assert decoded(b"[" * 100_000) is None


class EndlessBody:
    """A response without a line end and without an end."""

    def __init__(self) -> None:
        self.chunks = 0

    def read1(self, size: int) -> bytes:
        self.chunks += 1
        assert self.chunks < 1000, "the line is read for ever"
        return bytes(size)


def test_a_line_of_a_stream_has_a_bound() -> None:
    """A line longer than any event is the end of the stream, and its host is named."""
    body = EndlessBody()
    with pytest.raises(Broken, match="Agent of host-a sent a line of more than 1048576 bytes"):
        list(client._lines(cast("http.client.HTTPResponse", body), "host-a"))
    assert body.chunks == 17


def test_a_file_of_line_ends_is_not_split_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with far more lines than a trace may have, one too many is looked at."""
    given: list[int] = []

    def count(lines: list[str], source: str) -> Trace:
        given.append(len(lines))
        return decode(lines, source)

    monkeypatch.setattr(trace, "decode", count)
    file = tmp_path / "run.ndjson"
    file.write_text("\n" * (2 * MOST_LINES) + "{}", "utf-8")
    with pytest.raises(BadInput, match="run.ndjson, line 1"):
        _read(str(file))
    assert given == [MOST_LINES + 1]
    good = list(encode(Trace("qemu", FACTS, Goal(), ())))
    file.write_text("\n".join(good * 2), "utf-8")
    with pytest.raises(BadInput, match="line 2: t is None"):
        _read(str(file))

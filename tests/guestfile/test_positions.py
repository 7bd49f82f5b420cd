"""The scanner finds the line of every key in any document that is TOML."""

from __future__ import annotations

import contextlib
import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vmferry.guestfile.positions import MOST_PARTS, Path, TooDeep, find_lines, line_of

TRICKY = '''\
# [not.a.table]
"quoted key" = 1   # = "x"
a.b . c = """
[[disk]]
x = 1 \\""" still """
'lit\\eral' = \'\'\'
y = 2\'\'\'
list = [
  1, # one ]
  { k = [1, 2], "m.n" = "}" }, [ "a", 'b' ],
]
inline = { x = 1, y.z = { w = "," } }
[t.u]
k = 2026-01-01 10:00:00
[[disk]]
image = "a\\"]"
[disk.sub]
deep = true
[[disk.part]]
p = 1
[[disk]]
[[disk.part]]
p = 2
'''

EXPECTED: dict[Path, int] = {
    ("quoted key",): 2,
    ("a",): 3,
    ("a", "b", "c"): 3,
    ("lit\\eral",): 6,
    ("list",): 8,
    ("list", 0): 9,
    ("list", 1): 10,
    ("list", 1, "k", 1): 10,
    ("list", 1, "m.n"): 10,
    ("list", 2, 1): 10,
    ("inline", "y", "z", "w"): 12,
    ("t", "u"): 13,
    ("t", "u", "k"): 14,
    ("disk", 0): 15,
    ("disk", 0, "image"): 16,
    ("disk", 0, "sub", "deep"): 18,
    ("disk", 0, "part", 0, "p"): 20,
    ("disk", 1): 21,
    ("disk", 1, "part", 0): 22,
    ("disk", 1, "part", 0, "p"): 23,
}


def every_path(value: Any, at: Path = ()) -> list[Path]:
    """Return the path of every key and element of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in ((*at, key), *every_path(inner, (*at, key)))]


def test_every_syntax_of_toml_is_followed() -> None:
    """Strings of all kinds, comments, inline tables, arrays and nested arrays of tables get their true lines."""
    tomllib.loads(TRICKY)
    found = find_lines(TRICKY)
    assert {path: found.get(path) for path in EXPECTED} == EXPECTED


def test_windows_line_ends_do_not_shift_lines() -> None:
    """A file from an editor that writes CR LF has the same lines."""
    assert find_lines(TRICKY.replace("\n", "\r\n")) == find_lines(TRICKY)


def test_a_missing_key_has_the_line_of_its_table() -> None:
    """What is not there is told at the table where it belongs; what belongs to the document has no line."""
    lines = find_lines("a = 1\n[boot]\nx = 1\n")
    assert line_of(lines, ("boot", "kernel")) == 2
    assert line_of(lines, ("name",)) is None


def test_a_table_has_the_line_of_its_own_header() -> None:
    """A table that another header only passes through is found at its own header, when there is one."""
    lines = find_lines("[boot.deep]\nx = 1\n[boot]\ny = 1\n")
    assert lines["boot",] == 3


KEYS = st.text(min_size=1, max_size=6)
LEAVES = st.one_of(st.integers(-(2**40), 2**40), st.booleans(), st.text(max_size=12), st.floats(allow_nan=False))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(document=st.dictionaries(KEYS, VALUES, max_size=4), multiline=st.booleans())
def test_every_key_of_any_document_has_a_line_within_it(document: dict[str, Any], multiline: bool) -> None:
    """Whatever a TOML writer makes, the scanner finds all of it and nothing else, and ends."""
    text = tomli_w.dumps(document, multiline_strings=multiline)
    assume(all(len(path) <= MOST_PARTS for path in every_path(document)))
    lines = find_lines(text)
    assert set(every_path(tomllib.loads(text))) <= set(lines)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@pytest.mark.parametrize("text", ["[[[[}", "a = [}]", "a = {]", 'a = ["', "a = [{", "a.", "[", "[[a", "=", "a = [}}"])
def test_the_scanner_ends_on_broken_brackets(text: str) -> None:
    """Stray and missing brackets, which no TOML reader lets through, do not hold the scanner up."""
    assert all(line == 1 for line in find_lines(text).values())


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="[]{}=.,\"'\\#\n ab1", max_size=40))
def test_the_scanner_ends_on_anything(text: str) -> None:
    """Even on text that is not TOML the scanner comes to an end within the text."""
    with contextlib.suppress(TooDeep):
        assert all(line >= 1 for line in find_lines(text).values())


@pytest.mark.parametrize(
    "deep", ["{}a = 1", "[{}a]", "[[{}a]]", '"a" = {{ {}a = 1 }}', "a.a.a.a = {{ a.a.a.a = {{ {}a = 1 }} }}"]
)
def test_a_long_key_is_refused_before_anything_is_made_of_it(deep: str) -> None:
    """However a path gets longer than any of a guest file, its line is told, and none of its prefixes is kept."""
    with pytest.raises(TooDeep) as caught:
        find_lines("x = 1\n" + deep.format("a." * MOST_PARTS) + "\n")
    assert caught.value.args == (2,)
    assert ("a",) * MOST_PARTS in find_lines("a." * (MOST_PARTS - 1) + "a = 1\n")

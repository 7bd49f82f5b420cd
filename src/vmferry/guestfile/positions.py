"""On which line each key of a TOML document stands; `tomllib` does not say.

The scanner never judges syntax: it only follows tables, arrays of tables, dotted keys, strings, inline tables and
arrays, and notes the line of each path. It goes through any text in linear time, and what it notes holds as far as the
text is valid; so it can say that a text is too deep before `tomllib` takes quadratic time over it.

Source: TOML 1.0.0.
"""

from __future__ import annotations

import bisect
import tomllib

Path = tuple[str | int, ...]

#: Parts of a path; a guest file has five. All prefixes of a path are kept, and what is nested is walked by recursion.
MOST_PARTS = 8
_BARE_END = frozenset(",]}#\n")


class TooDeep(Exception):
    """A key, with the tables and arrays around it, has more than `MOST_PARTS` parts; its argument is the line."""


def find_lines(text: str) -> dict[Path, int]:
    """Return the line (from 1) of every table and key, by its path, e.g. ``("disk", 1, "image") -> 14``.

    Args:
        text: a TOML document; in one that is not valid, what stands behind the first mistake means nothing.

    Raises:
        TooDeep: a path has more than `MOST_PARTS` parts.
    """
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """Return the line of a path, or of the nearest table around it; None for the document as a whole."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Scanner:
    """Walks the text once, from statement to statement."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self._ends = [at for at, char in enumerate(self.text) if char == "\n"]
        self.lines: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}  #: array of tables -> its elements so far
        self._passed: set[Path] = set()

    def scan(self) -> None:
        """Visit every statement of the document."""
        table: Path = ()
        while self._skip_blank():
            if self._take("[["):
                table = self._array_table(self._key())
            elif self._take("["):
                table = self._resolve(self._key())
                self._header(table)
            else:
                self._pair(table)
            self._skip_line()

    def _array_table(self, key: Path) -> Path:
        """Open the next element of an array of tables."""
        parent = self._resolve(key[:-1])
        array = (*parent, key[-1])
        index = self._counts.get(array, 0)
        self._counts[array] = index + 1
        self._header((*array, index))
        return (*array, index)

    def _header(self, table: Path) -> None:
        """Note a table's own header; tables that it only passes through have its line until theirs comes."""
        for length in range(1, len(table)):
            if table[:length] not in self.lines:
                self._note(table[:length])
                self._passed.add(table[:length])
        if table in self._passed:
            self._passed.discard(table)
            del self.lines[table]
        self._note(table)

    def _resolve(self, key: Path) -> Path:
        """Put the current element's index behind each part that is an array of tables."""
        path: Path = ()
        for part in key:
            path = (*path, part)
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
        return path

    def _pair(self, table: Path) -> None:
        key = self._key()
        for length in range(1, len(key) + 1):
            self._note((*table, *key[:length]))
        self._skip_space()
        self._take("=")
        self._value((*table, *key))

    def _value(self, path: Path) -> None:
        self._skip_space()
        if self._take("{"):
            self._inline_table(path)
        elif self._take("["):
            self._array(path)
        elif self._peek() in ('"', "'"):
            self._string()
        else:
            while self._peek() and self._peek() not in _BARE_END:
                self.at += 1

    def _inline_table(self, path: Path) -> None:
        while self._skip_blank() and not self._take("}"):
            if not self._take(","):
                self._pair(path)

    def _array(self, path: Path) -> None:
        index = 0
        while self._skip_blank() and not self._take("]"):
            if self._take(","):
                continue
            self._note((*path, index))
            before = self.at
            self._value((*path, index))
            self.at = max(self.at, before + 1)  # a stray bracket is in no valid document; moving on ends the walk
            index += 1

    def _key(self) -> Path:
        parts: list[str] = []
        while True:
            self._skip_space()
            parts.append(self._string() if self._peek() in ('"', "'") else self._bare_key())
            self._check_depth(len(parts))
            self._skip_space()
            if not self._take("."):
                return tuple(parts)

    def _bare_key(self) -> str:
        start = self.at
        while self._peek().isalnum() or (self._peek() and self._peek() in "-_"):
            self.at += 1
        if self.at == start:  # cannot be in a valid document; moving on keeps the walk finite
            self.at += 1
        return self.text[start : self.at]

    def _string(self) -> str:
        """Step over a string of any of the four kinds and return a key's text."""
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            self._long_string(quote * 3)
            return ""
        start = self.at
        self.at += 1
        while self._peek() not in ("", quote):
            self.at += 2 if quote == '"' and self._peek() == "\\" else 1
        self.at += 1
        raw = self.text[start : self.at]
        return raw[1:-1] if quote == "'" else _unescape(raw)

    def _long_string(self, end: str) -> None:
        self.at += 3
        while self.at < len(self.text) and not self.text.startswith(end, self.at):
            self.at += 2 if end == '"""' and self._peek() == "\\" else 1
        self.at += 3
        while self._peek() == end[0]:  # up to two quotes may stand before the closing three
            self.at += 1

    def _note(self, path: Path) -> None:
        self._check_depth(len(path))
        self.lines.setdefault(path, self._line())

    def _line(self) -> int:
        return bisect.bisect_left(self._ends, self.at) + 1

    def _check_depth(self, parts: int) -> None:
        if parts > MOST_PARTS:
            raise TooDeep(self._line())

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self, expected: str) -> bool:
        if not self.text.startswith(expected, self.at):
            return False
        self.at += len(expected)
        return True

    def _skip_space(self) -> None:
        while self._peek() in (" ", "\t"):
            self.at += 1

    def _skip_line(self) -> None:
        while self._peek() not in ("", "\n"):
            self.at += 1

    def _skip_blank(self) -> bool:
        """Step over spaces, line ends and comments; tell whether anything is left."""
        while self._peek() in (" ", "\t", "\n", "#"):
            if self._peek() == "#":
                self._skip_line()
            else:
                self.at += 1
        return self.at < len(self.text)


def _unescape(raw: str) -> str:
    try:
        return str(tomllib.loads(f"key = {raw}")["key"])
    except ValueError:
        return raw[1:-1]

"""The page says what may keep a move from starting."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/libvirt.md"
#: where a blocker of a move is made that is none of the domain's own checks
PLACES = (
    *("libvirt/copies", "libvirt/moves", "libvirt/rewrites", "libvirt/locks.py"),
    *("cli/domain_moves.py", "cli/domain_source.py"),
)
_CODE = re.compile(r'Blocker\(\s*"([a-z]+\.[a-z-]+)"')


def test_every_code_is_on_the_page() -> None:
    """Each code that a move gives has a line, and no line has another one."""
    paths = [ROOT / "src/vmferry" / place for place in PLACES]
    files = [file for path in paths for file in ([path] if path.suffix else sorted(path.glob("*.py")))]
    given = {code for file in files for code in _CODE.findall(file.read_text("utf-8"))}
    section = PAGE.read_text("utf-8").partition("## Moving a domain")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| `[a-z]+\.[a-z-]+`.*\|.*\|.*\|", line)]
    told = {code for row in rows for code in re.findall(r"`([a-z]+\.[a-z-]+)`", row.split("|")[1])}
    assert told == given
    assert len(told) > 10

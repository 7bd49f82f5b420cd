"""Holds a hand-over in a chosen state, so that a test can break things exactly there.

A file `SIDE.STATE` in the directory asks for a hold; the agent answers with `SIDE.STATE.reached` and goes on when the
first file is gone. The agent looks at it only when VMFERRY_LAB_HOLD names a directory: in a lab, never by
configuration.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from vmferry.core.handover.states import AnyState, Side, SourceState

VARIABLE = "VMFERRY_LAB_HOLD"
_LOOK_EVERY_S = 0.01


def hold_name(state: AnyState) -> str:
    """Return the name of the file that holds a state."""
    side = Side.SOURCE if isinstance(state, SourceState) else Side.DESTINATION
    return f"{side}.{state}"


def holder() -> Callable[[AnyState], Awaitable[object] | None] | None:
    """Return what holds hand-overs of this process; None outside a lab."""
    directory = os.environ.get(VARIABLE)
    if not directory:
        return None
    folder = Path(directory)

    def hold(state: AnyState) -> Awaitable[object] | None:
        asked = folder / hold_name(state)
        return _wait_gone(asked) if asked.exists() else None

    return hold


async def _wait_gone(asked: Path) -> None:
    asked.with_name(asked.name + ".reached").touch()
    while asked.exists():  # noqa: ASYNC110, ASYNC240 - another process removes it, which no asyncio.Event can tell
        await asyncio.sleep(_LOOK_EVERY_S)

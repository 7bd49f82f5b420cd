"""The agent's API as the lab asks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.lab.api import Api


async def test_a_stream_that_was_silent_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that has nothing to tell sends an empty line now and then, which is no event."""

    async def answer(*_: object) -> tuple[int, bytes]:
        return 200, b'{"event": "state"}\n\n\n{"event": "finished"}\n'

    api = Api("host-a", Path("operator"), None)
    monkeypatch.setattr(api, "_ask", answer)
    assert await api.follow("/v1/handovers/1/watch") == [{"event": "state"}, {"event": "finished"}]

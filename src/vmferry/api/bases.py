"""What every request and every reply has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """Base of everything that is sent to an agent: strict types, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Reply(BaseModel):
    """Base of everything that an agent answers."""

    model_config = ConfigDict(frozen=True)

"""Turns readings of a running migration into rounds, speeds, a verdict and the time left: pure, without a clock."""

from __future__ import annotations

from vmferry.core.rounds.tracker import RoundTracker, memory_done_percent

__all__ = ["RoundTracker", "memory_done_percent"]

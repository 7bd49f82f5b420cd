"""When to switch over, and what to do when a guest writes faster than the link sends: pure policies.

`make_policy` makes one, `Guarded` keeps it from doing harm, `Observer` turns readings into what it is told.
See docs/policies.md.
"""

from __future__ import annotations

from vmferry.core.convergence.facts import AtDeadline, Description, Facts, Goal, Throttle, Wishes, check_goal
from vmferry.core.convergence.guarded import Guarded
from vmferry.core.convergence.observations import Observation, Round, Sample
from vmferry.core.convergence.observer import Observer
from vmferry.core.convergence.policy import Policy
from vmferry.core.convergence.registry import DEFAULT, POLICIES, describe, make_policy

__all__ = [
    "DEFAULT",
    "POLICIES",
    "AtDeadline",
    "Description",
    "Facts",
    "Goal",
    "Guarded",
    "Observation",
    "Observer",
    "Policy",
    "Round",
    "Sample",
    "Throttle",
    "Wishes",
    "check_goal",
    "describe",
    "make_policy",
]

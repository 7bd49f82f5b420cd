"""What is known about a migration after some of its events: a value that each event turns into the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmferry.core.progress import (
    DisksCopied,
    Finished,
    PolicyBegan,
    PolicyOrdered,
    Progress,
    ProgressEvent,
    RoundEnded,
    StateEntered,
    Step,
)
from vmferry.core.units import Milliseconds

#: The three phases of pre-copy, and the steps that belong to each.
PHASES = (
    ("first round, all RAM", frozenset({Step.COPY})),
    ("rounds", frozenset({Step.ROUNDS})),
    ("stop and copy, hand-over", frozenset({Step.PAUSE, Step.LAST_PAGES, Step.HANDOVER})),
)

STEPS = {
    Step.RESERVE: "check and reserve at the destination",
    Step.COPY: "copy all memory while the guest runs",
    Step.ROUNDS: "copy what changed, again and again",
    Step.PAUSE: "pause the guest at the source",
    Step.LAST_PAGES: "last pages and device state",
    Step.HANDOVER: "hand over disks, ownership, network",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """One migration as it is known now."""

    guest: str
    source: str
    destination: str
    state: str | None = None
    step: Step | None = None
    owner: str | None = None
    why: str | None = None
    rounds: tuple[RoundEnded, ...] = ()
    policy: PolicyBegan | None = None
    orders: tuple[PolicyOrdered, ...] = ()
    disks: DisksCopied | None = None
    progress: Progress | None = None
    #: what is shown: never more than before, unless `why_longer` says why
    time_left_ms: Milliseconds | None = None
    why_longer: str | None = None
    finished: Finished | None = None

    @property
    def phase(self) -> int | None:
        """Which of the three phases it is, from 1; None before the first."""
        return next((number for number, (_, steps) in enumerate(PHASES, 1) if self.step in steps), None)


def fold(scene: Scene, event: ProgressEvent) -> Scene:  # noqa: PLR0911 - one for each event
    """Return the scene after one more event; a step never goes back, whatever the order of late events."""
    match event:
        case StateEntered():
            step = _furthest(scene, _told(scene, event.step))
            return replace(scene, state=event.state, step=step, owner=event.owner, why=event.why)
        case DisksCopied():
            return replace(scene, disks=event)
        case Progress():
            step = Step.ROUNDS if event.round > 1 else Step.COPY
            return _with_time_left(replace(scene, progress=event, step=_furthest(scene, step)), event)
        case RoundEnded():
            return replace(scene, rounds=(*scene.rounds, event), step=_furthest(scene, Step.ROUNDS))
        case PolicyBegan():
            return replace(scene, policy=event)
        case PolicyOrdered():
            return replace(scene, orders=(*scene.orders, event))
        case Finished():
            return replace(scene, finished=event, owner=event.owner or scene.owner, time_left_ms=None)


def _furthest(scene: Scene, step: Step | None) -> Step | None:
    """Return the further of the step that was known and the one that is told now."""
    return max((each for each in (scene.step, step) if each is not None), default=None)


def _told(scene: Scene, step: Step | None) -> Step | None:
    """Return the step of a state; first copy and rounds are one state, and it is rounds once a round has ended."""
    return Step.COPY if step is Step.ROUNDS and not scene.rounds else step


def _with_time_left(scene: Scene, event: Progress) -> Scene:
    new, shown = event.time_left_ms, scene.time_left_ms
    if new is None:
        return scene
    if shown is None or new <= shown:
        return replace(scene, time_left_ms=new, why_longer=None)
    if event.why_longer is not None:
        return replace(scene, time_left_ms=new, why_longer=event.why_longer)
    return scene

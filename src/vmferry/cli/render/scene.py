"""What is known about a migration after some of its events: a value that each event turns into the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmferry.core.progress import Finished, Progress, ProgressEvent, RoundEnded, StateEntered, Step
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
    progress: Progress | None = None
    #: what is shown: never more than before, unless `why_longer` says why
    time_left_ms: Milliseconds | None = None
    why_longer: str | None = None
    finished: Finished | None = None

    @property
    def phase(self) -> int | None:
        """Which of the three phases it is, from 1; None before the first."""
        return next((number for number, (_, steps) in enumerate(PHASES, 1) if self.step in steps), None)


def fold(scene: Scene, event: ProgressEvent) -> Scene:
    """Return the scene after one more event; a step never goes back, whatever the order of late events."""
    match event:
        case StateEntered():
            later = event.step is not None and (scene.step is None or event.step > scene.step)
            step = event.step if later else scene.step
            return replace(scene, state=event.state, step=step, owner=event.owner, why=event.why)
        case Progress():
            return _with_time_left(replace(scene, progress=event, step=_step_of(scene, event)), event)
        case RoundEnded():
            return replace(scene, rounds=(*scene.rounds, event))
        case Finished():
            return replace(scene, finished=event, owner=event.owner or scene.owner, time_left_ms=None)


def _step_of(scene: Scene, event: Progress) -> Step | None:
    """Tell rounds from the first copy by the round's number: both are one state of the hand-over."""
    if scene.step is not None and scene.step >= Step.ROUNDS:
        return scene.step
    return Step.ROUNDS if event.round > 1 else Step.COPY


def _with_time_left(scene: Scene, event: Progress) -> Scene:
    new, shown = event.time_left_ms, scene.time_left_ms
    if new is None:
        return scene
    if shown is None or new <= shown:
        return replace(scene, time_left_ms=new, why_longer=None)
    if event.why_longer is not None:
        return replace(scene, time_left_ms=new, why_longer=event.why_longer)
    return scene

"""Sentences about events that plain lines and the live view share."""

from __future__ import annotations

from vmferry.cli.render.scene import STEPS, Scene
from vmferry.core.progress import DisksCopied, Finished, Outcome, PolicyBegan, PolicyOrdered, RoundEnded
from vmferry.core.units import format_bytes, format_ms, format_rate

NOT_KNOWN = "not known"


def title(scene: Scene) -> str:
    """Return which migration it is."""
    return f"{scene.guest}: {scene.source} -> {scene.destination}"


def step_text(scene: Scene) -> str:
    """Return which of the six steps it is."""
    if scene.step is None:
        return "step 0/6: opened"
    return f"step {int(scene.step)}/6: {STEPS[scene.step]}"


def dirtied_text(ended: RoundEnded) -> str:
    """Return what was dirtied during a round, which is what the next one has to send."""
    return NOT_KNOWN if ended.dirtied_bytes is None else format_bytes(ended.dirtied_bytes)


def rest_text(expected_ms: float | None, limit_ms: float) -> str:
    """Return what the rest would take if the guest were stopped now, against the limit."""
    expected = NOT_KNOWN if expected_ms is None else format_ms(expected_ms)
    return f"{expected} / {format_ms(limit_ms)}"


def round_text(ended: RoundEnded) -> str:
    """Return one ended round as a sentence."""
    return (
        f"round {ended.round}: {format_ms(ended.duration_ms)}, sent {format_bytes(ended.sent_bytes)},"
        f" dirtied meanwhile {dirtied_text(ended)}, {format_rate(ended.bandwidth)}, rest / limit"
        f" {rest_text(ended.expected_downtime_ms, ended.downtime_limit_ms)}: {ended.verdict}"
    )


def disks_text(seen: DisksCopied) -> str:
    """Return how far the copies of images are."""
    share = 100 * seen.copied_bytes // max(1, seen.total_bytes)
    images = "1 image" if seen.images == 1 else f"{seen.images} images"
    return f"disks: {format_bytes(seen.copied_bytes)} of {format_bytes(seen.total_bytes)} copied ({images}), {share} %"


def policy_text(began: PolicyBegan) -> str:
    """Return which policy decides, and what it cannot have."""
    text = f"policy {began.policy} decides when to switch over"
    if began.again is not None:
        text += f"; it begins anew: {began.again}"
    return "; ".join([text, *(f"left out: {one}" for one in began.left_out)])


def order_text(event: PolicyOrdered) -> str:
    """Return one order of the policy as a sentence, with the pages that were left."""
    text = f"policy {event.policy}: {event.order} ({event.rule})"
    if event.round is not None and event.left_pages is not None:
        text += f"; {event.left_pages} pages left in round {event.round}, {format_ms(event.elapsed_ms)} into the stream"
    return text if event.refused is None else f"{text}; REFUSED: {event.refused}"


def finished_text(scene: Scene, finished: Finished) -> str:
    """Return how it ended, and where the guest runs now."""
    text = _OUTCOMES[finished.outcome].format(guest=scene.guest, source=scene.source, destination=scene.destination)
    if finished.outcome is not Outcome.MOVED and finished.owner is not None:
        text += f"; guest runs on {finished.owner}" if _runs(finished.outcome) else f"; owner is {finished.owner}"
    if finished.reason:
        text += f"; {finished.reason}"
    if finished.fix:
        text += f"; {finished.fix}"
    return text


def _runs(outcome: Outcome) -> bool:
    return outcome not in {Outcome.LOST, Outcome.HELD}


_OUTCOMES = {
    Outcome.MOVED: "{guest} runs on {destination}",
    Outcome.ABORTED: "migration of {guest} to {destination} was aborted",
    Outcome.CANCELLED: "migration of {guest} to {destination} was cancelled",
    Outcome.BLOCKED: "{guest} cannot move to {destination}; nothing was touched",
    Outcome.RETURNED: "{destination} gave {guest} back to {source} before it ever ran there",
    Outcome.LOST: "{guest} is lost: the only QEMU that held it died",
    Outcome.HELD: "{guest} is held: nobody runs it until it is certain who owns it",
}

"""How a hand-over is brought to a state on real QEMU, and held there.

Most states need no more than a hold file. States that depend on who speaks first are made by silencing the other one:
SIGSTOP of the destination's QEMU keeps the source's in `device`, a frozen destination agent keeps its word back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from vmferry.core.errors import Broken, TimedOut, VmferryError
from vmferry.core.handover.states import AnyState, DestinationState, Side, SourceState
from vmferry.core.units import MIB
from vmferry.lab.chaos.scene import HOSTS, REACH_S, Scene
from vmferry.lab.chaos.stream import break_off, queues
from vmferry.qemu import userfault
from vmferry.sim.matrix import Place

_S, _D = SourceState, DestinationState
#: The micro guest's memory takes two seconds through this: time enough for a fault in the middle of pre-copy.
_SLOW: dict[str, object] = {"max_bandwidth": 4 * MIB}
#: Post-copy as soon as memory is being sent; its pages take three seconds, also those that QEMU sends unasked.
_POSTCOPY: dict[str, object] = {"postcopy_after": 1, "max_bandwidth": 3 * MIB}
#: An order to cancel is posted by another request; it must be in the machine's queue before the hold ends.
_CANCEL_ARRIVES_S = 0.3


async def bring_to(scene: Scene, place: Place) -> None:
    """Open a hand-over and let it live until it is held in a place.

    Raises:
        TimedOut: it never came there.
    """
    way = _continued if place.continued else _WAYS.get(place.state, _straight)
    await way(scene, place.state)
    scene.history.note(scene.reached_text(place))


async def _straight(scene: Scene, state: AnyState) -> None:
    """Hold it where it comes by anyway."""
    await _to(scene, state)


async def _slowly(scene: Scene, state: AnyState) -> None:
    """Hold it while memory is being sent."""
    await _to(scene, state, _SLOW)


async def _under_way(scene: Scene, state: AnyState) -> None:
    """Hold the destination while memory comes in."""
    await _slowly(scene, state)
    await _until(lambda: scene.journal_state(Side.SOURCE)[0] == str(_S.PRECOPY), "pre-copy")


async def _by_postcopy(scene: Scene, state: AnyState) -> None:
    """Hold it on the way through post-copy."""
    if not userfault.DEVICE.exists():
        raise Broken(f"no {userfault.DEVICE} on this machine: no guest can come by post-copy")
    await _to(scene, state, _POSTCOPY)


async def _stream_broken(scene: Scene, state: AnyState) -> None:
    """Reset the stream when the guest runs there; a frozen agent is asked to listen anew, and does not."""
    await _by_postcopy(scene, _S.POSTCOPY_RUNNING)
    scene.freeze_agent(Side.DESTINATION)
    carrier = scene.carrier(Side.SOURCE)
    if carrier is None:
        raise Broken("Nothing at the source has the stream's connections")
    broken = break_off(scene.lab.inside(HOSTS[Side.SOURCE]), carrier.pid)
    scene.history.note(f"reset {broken} connections of the stream at the source")
    await _on_to(scene, _S.POSTCOPY_RUNNING, state)


async def _continued(scene: Scene, state: AnyState) -> None:
    """Have `migrate-continue` go out while the destination's QEMU is stopped and reads nothing."""
    await _by_postcopy(scene, state)
    scene.stop_qemu(Side.DESTINATION)
    before = await _all_sent(scene, Side.DESTINATION)
    scene.holds.release(state)
    await _until(lambda: _queues(scene, Side.DESTINATION) != before, "the guest's crossing")
    await _all_sent(scene, Side.DESTINATION)


async def _to(scene: Scene, state: AnyState, options: dict[str, object] | None = None) -> None:
    scene.holds.ask(state)
    await scene.begin(options)
    await scene.holds.reached(state, REACH_S)


async def _on_to(scene: Scene, before: AnyState, state: AnyState) -> None:
    scene.holds.ask(state)
    scene.holds.release(before)
    await scene.holds.reached(state, REACH_S)


async def _in_device(scene: Scene, state: AnyState) -> None:
    """Keep the source's QEMU in `device`: the destination's is stopped and confirms nothing."""
    await _to(scene, _S.PRE_SWITCHOVER)
    scene.stop_qemu(Side.DESTINATION)
    await _on_to(scene, _S.PRE_SWITCHOVER, state)


async def _without_their_word(scene: Scene, state: AnyState) -> None:
    """Keep the destination's word back: its agent is frozen, its QEMU loads."""
    await _to(scene, _S.PRE_SWITCHOVER)
    scene.freeze_agent(Side.DESTINATION)
    await _on_to(scene, _S.PRE_SWITCHOVER, state)


async def _their_word_first(scene: Scene, state: AnyState) -> None:
    """Have the destination load everything while the source's QEMU, stopped in `device`, cannot say so."""
    await _to(scene, _S.PRE_SWITCHOVER)
    scene.stop_qemu(Side.DESTINATION)
    scene.holds.ask(state)
    scene.holds.release(_S.PRE_SWITCHOVER)
    await _until(lambda: scene.journal_state(Side.SOURCE)[0] == str(_S.SWITCHOVER), "switchover")
    await _all_sent(scene, Side.SOURCE)
    scene.stop_qemu(Side.SOURCE)
    scene.wake_qemu(Side.DESTINATION)
    await scene.holds.reached(state, REACH_S)


async def _all_sent(scene: Scene, side: Side) -> list[str]:
    """Wait until the source's QEMU has nothing more to send: the queues of a side move no more. Return those."""
    seen: list[list[str]] = []
    while len(seen) < 10 or len(set(map(str, seen[-10:]))) > 1:
        seen.append(_queues(scene, side))
        await asyncio.sleep(0.02)
    return seen[-1]


def _queues(scene: Scene, side: Side) -> list[str]:
    carrier = scene.carrier(side)
    return [] if carrier is None else queues(carrier.pid)


async def _orphaned(scene: Scene, state: AnyState) -> None:
    """Kill the source's QEMU when it has completed and the destination did not say so yet."""
    await _without_their_word(scene, _S.SOURCE_COMPLETED)
    scene.kill_qemu(Side.SOURCE)
    await _on_to(scene, _S.SOURCE_COMPLETED, state)


async def _given_back(scene: Scene, state: AnyState) -> None:
    """Kill the destination's QEMU between the acquisition and the intent: the token goes back."""
    await _to(scene, _D.ACQUIRED)
    scene.kill_qemu(Side.DESTINATION)
    await _on_to(scene, _D.ACQUIRED, state)


async def _cancelled(scene: Scene, state: AnyState) -> None:
    """Cancel while the guest stands still and `migrate-continue` goes out."""
    await _cancelled_in(scene, _S.PRE_SWITCHOVER, state)


async def _cancelled_early(scene: Scene, state: AnyState) -> None:
    """Cancel while memory is being sent."""
    await _cancelled_in(scene, _S.PRECOPY, state)


async def _cancelled_in(scene: Scene, before: AnyState, state: AnyState) -> None:
    await _to(scene, before, _SLOW if before is _S.PRECOPY else None)
    cancelling = asyncio.create_task(_cancel(scene))
    await asyncio.sleep(_CANCEL_ARRIVES_S)
    await _on_to(scene, before, state)
    scene.asking.append(cancelling)


async def _cancel(scene: Scene) -> None:
    """Ask for the end; whoever answers may die meanwhile."""
    try:
        await scene.source_api.post(f"/v1/handovers/{scene.handover}/cancel")
    except VmferryError as error:
        scene.history.note(f"cancel was not answered: {error}")


async def _until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + REACH_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimedOut(f"The hand-over does not come to {what}")
        await asyncio.sleep(0.01)


_WAYS: Mapping[AnyState, Callable[[Scene, AnyState], Awaitable[None]]] = {
    _S.PRECOPY: _slowly,
    _S.SWITCHOVER: _in_device,
    _S.SOURCE_COMPLETED: _without_their_word,
    _S.DESTINATION_LOADED: _their_word_first,
    _S.ORPHANED: _orphaned,
    _S.ABORTING: _cancelled,
    _S.RETURNING: _given_back,
    _S.POSTCOPY_ORDERED: _by_postcopy,
    _S.POSTCOPY_CROSSING: _by_postcopy,
    _S.POSTCOPY_COMMITTED: _by_postcopy,
    _S.POSTCOPY_RUNNING: _by_postcopy,
    _S.POSTCOPY_PAUSED: _stream_broken,
    _D.POSTCOPY_LOADED: _by_postcopy,
    _D.POSTCOPY_STARTING: _by_postcopy,
    _D.POSTCOPY_RUNNING: _by_postcopy,
    _D.RECEIVING: _under_way,
    _D.GIVING_BACK: _given_back,
    _D.DISCARDING: _cancelled_early,
}

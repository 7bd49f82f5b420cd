"""What can go wrong, by name: each is done to a world between two of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmferry.core.handover.states import Side
from vmferry.sim.world import World

_S, _D = Side.SOURCE, Side.DESTINATION


def _restart(side: Side, *, death_first: bool = False) -> Callable[[World], None]:
    def fault(world: World) -> None:
        world.kill_agent(side)
        world.restart_agent(side, death_first=death_first)

    return fault


def _reboot(side: Side) -> Callable[[World], None]:
    def fault(world: World) -> None:
        world.kill_host(side)
        world.restart_agent(side)

    return fault


def _fence(side: Side) -> Callable[[World], None]:
    def fault(world: World) -> None:
        if world.can_fence(side):
            world.fence(side)

    return fault


def _cut_and_break(world: World) -> None:
    world.cut()
    world.break_stream(rest_arrives=True)


FAULTS: Mapping[str, Callable[[World], object]] = {
    "source agent dies": lambda world: world.kill_agent(_S),
    "destination agent dies": lambda world: world.kill_agent(_D),
    "source agent restarts": _restart(_S),
    "destination agent restarts": _restart(_D),
    "destination agent restarts, death heard first": _restart(_D, death_first=True),
    "source QEMU dies": lambda world: world.kill_qemu(_S),
    "destination QEMU dies": lambda world: world.kill_qemu(_D),
    "source host dies": lambda world: world.kill_host(_S),
    "destination host dies": lambda world: world.kill_host(_D),
    "source host reboots": _reboot(_S),
    "destination host reboots": _reboot(_D),
    "source is fenced": _fence(_S),
    "destination is fenced": _fence(_D),
    "source deadline passes": lambda world: world.pass_deadline(_S),
    "destination deadline passes": lambda world: world.pass_deadline(_D),
    "network is cut": World.cut,
    "network is cut and the stream breaks": _cut_and_break,
    "stream breaks, the rest is lost": lambda world: world.break_stream(rest_arrives=False),
    "stream breaks, the rest arrives": lambda world: world.break_stream(rest_arrives=True),
    "network heals": World.heal,
    "operator cancels": World.cancel,
    "guest powers off": World.power_off,
    "disk refuses the destination": World.refuse_disk,
    "lease is refused to the destination": World.refuse_lease,
    "lease cannot be given back": World.hang_leases,
    "both ask again": World.poll,
    "messages are lost": lambda world: world.network.messages.clear(),
}

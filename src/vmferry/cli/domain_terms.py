"""What was asked of the move of a libvirt domain, read from the command's options, and what that makes of the move."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmferry.cli.output import say
from vmferry.core.convergence import throttle
from vmferry.core.errors import BadInput, NotFound, VmferryError
from vmferry.core.units import Percent

if TYPE_CHECKING:
    from vmferry.conductor.plan import Asked
    from vmferry.libvirt.adapter import LibvirtConnection
    from vmferry.libvirt.copies import Copies, Image, ImagesThere
    from vmferry.libvirt.locks import Fence
    from vmferry.libvirt.moves.request import Wish
    from vmferry.libvirt.moves.standing import Standing
    from vmferry.libvirt.moves.tuning import Tuning
    from vmferry.libvirt.rewrites.renaming import Renaming
    from vmferry.libvirt.tree import Element

_AUTO_CONVERGE, _NO_BRAKE = "auto-converge", "none"
#: How long a process that libvirt is ending may take.
_ENDS_WITHIN_S = 5.0
#: Options that only guests of libvirt have, as `_plan` has them, and as a person writes them.
ONLY_LIBVIRTS = {"disks": "--disk", "libvirt": "--libvirt", "maps": "--map"}


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked for beside policy and stream.

    Attributes:
        copies: whether disks are copied.
        targets: which; None: every one that is the host's own and can be written.
        brake: `--throttle`; None: whatever the policy wants.
        tuning: libvirt's own words.
        renaming: what is called otherwise at the destination.
    """

    copies: bool
    targets: tuple[str, ...] | None
    brake: str | None
    tuning: Tuning
    renaming: Renaming


def parse_terms(options: Mapping[str, Any]) -> Terms:
    """Return what was asked for.

    Raises:
        BadInput: an option says what libvirt's guests cannot have, or what is none.
    """
    from vmferry.libvirt.moves.tuning import parse_tuning
    from vmferry.libvirt.rewrites.renaming import parse_renaming

    brake = options.get("throttle")
    if brake not in {None, _AUTO_CONVERGE, _NO_BRAKE}:
        raise BadInput(
            f"--throttle {brake} cannot be had of libvirt's guests", fix=f"take {_AUTO_CONVERGE} or {_NO_BRAKE}"
        )
    targets = tuple(options.get("disks", ())) or None
    return Terms(
        bool(options.get("copy_disks") or targets),
        targets,
        brake,
        parse_tuning(options.get("libvirt", ())),
        parse_renaming(options.get("maps", ())),
    )


def refuse_libvirts(options: Mapping[str, Any]) -> None:
    """Return if nothing was asked for that only guests of libvirt have.

    Raises:
        BadInput: it was.
    """
    if words := [word for key, word in ONLY_LIBVIRTS.items() if options.get(key)]:
        raise BadInput(f"{', '.join(words)}: only guests of libvirt hosts have that", fix="leave it out")


@dataclass(frozen=True, slots=True)
class Brake:
    """How QEMU may slow a guest down: libvirt has no order by which a policy could change that while it works."""

    is_on: bool
    begins_with: Percent = throttle.NONE  #: bounded by the goal; 0: as QEMU sees fit


def brake_of(terms: Terms, asked: Asked) -> Brake:
    """Return the brake that was asked for; else the policy's own, or one within the goal where the policy has one."""
    from vmferry.conductor.domain_move import unattended_brake
    from vmferry.conductor.plan import policy_of
    from vmferry.core.convergence import Facts

    if terms.brake is not None:
        return Brake(terms.brake == _AUTO_CONVERGE)
    if percent := unattended_brake(asked):
        return Brake(is_on=True, begins_with=percent)
    facts = Facts(asked.ram_bytes, link=asked.link, postcopy=asked.postcopy)
    return Brake(policy_of(asked).wishes(facts).auto_converge)


def is_held(terms: Terms, fence: Fence, now: Standing, *, postcopy: bool) -> bool:
    """Tell whether a domain is held at its arrival: where nothing else keeps it from running on both hosts.

    Args:
        terms: what was asked for.
        fence: of its disks.
        now: how it stands at the source: one that does not run is not let run by its move.
        postcopy: it may be begun; then the domain would stand until the last page is there.
    """
    from vmferry.libvirt.moves.standing import Run

    if now.run is not Run.RUNS or terms.tuning.paused or postcopy:
        return False
    return not fence.keeps_one if terms.tuning.held is None else terms.tuning.held


async def find_copies(
    terms: Terms,
    guest: str,
    here: Element,
    there: Element,
    connections: tuple[LibvirtConnection, LibvirtConnection],
    destination: str,
) -> Copies:
    """Return what is copied of the domain's disks; raises as `ask_copies`."""
    from vmferry.libvirt.copies import Copies, ask_copies

    if not terms.copies:
        return Copies()
    return await ask_copies(guest, here, there, *connections, destination, targets=terms.targets)


async def put_there(wish: Wish, terms: Terms, guest: str, source: LibvirtConnection) -> Wish:
    """Return the wish with the domain as it shall be at the destination, where that is another one."""
    from vmferry.libvirt.facts import XmlKind

    if terms.renaming.is_empty:
        return wish
    moving = terms.renaming.apply(await source.domain_xml(guest, XmlKind.MOVING))
    defined = None
    if wish.is_persistent:
        defined = terms.renaming.apply(await source.domain_xml(guest, XmlKind.MOVING_DEFINED))
    return dataclasses.replace(wish, destination_xml=moving, persistent_xml=defined)


def say_left(copies: Copies, source: str) -> None:
    """Tell what a domain that has arrived left behind: nobody else would."""
    for image in copies.images:
        say(f"left on {source}: {image.here}, which {image.target} no longer is; remove it when nobody needs it")


@contextlib.asynccontextmanager
async def images_for(
    connections: tuple[LibvirtConnection, LibvirtConnection],
    images: tuple[Image, ...],
    guest: str,
    tell: Callable[[str], object],
    *,
    was_defined_there: bool,
) -> AsyncIterator[ImagesThere]:
    """Make the images at the destination; unless they are kept within the block, they are removed after it.

    They are removed only on proof that the domain never ran on them: it runs at the source, and the destination has
    neither a process nor a definition of it that was not there before. Else they stay, and it is told what to do.

    Args:
        connections: to the source's daemon and the destination's.
        images: what is to be made.
        guest: the domain.
        tell: gets a sentence for a person.
        was_defined_there: the destination had a definition of it before.

    Raises:
        Broken: an image cannot be made; none is left.
    """
    from vmferry.libvirt.copies import ImagesThere

    made = ImagesThere(connections[1], images, tell)
    await made.make()
    try:
        yield made
    finally:
        if not made.is_empty:
            why: str | None = f"the wait for a proof that {guest} never ran on them was interrupted"
            try:
                why = await _why_kept(connections, guest, was_defined_there=was_defined_there)
            finally:
                if why is not None:
                    tell(_said_kept(images, guest, why))
                    made.keep()
        await made.remove()


def _said_kept(images: tuple[Image, ...], guest: str, why: str) -> str:
    names = ", ".join(image.where for image in images)
    deletes = "; ".join(f"virsh vol-delete {image.volume} --pool {image.pool}" for image in images)
    return (
        f"warning: {names} stays at the destination: {why}. It may have run there, and then what it wrote last is in"
        f" these images: `vmferry recover {guest}`, and look at it on both hosts (virsh domstate --reason) and into"
        f" /var/log/libvirt/qemu/{guest}.log at the destination; only if it never ran there, on the destination:"
        f" {deletes}"
    )


async def _why_kept(
    connections: tuple[LibvirtConnection, LibvirtConnection], guest: str, *, was_defined_there: bool
) -> str | None:
    """Return why images must not be removed; None: the domain never ran on them. What is ending is waited for."""
    ends = time.monotonic() + _ENDS_WITHIN_S
    while True:
        try:
            why = await _doubt(connections, guest, was_defined_there=was_defined_there)
        except VmferryError as error:
            return f"whether {guest} has run there is not known ({error.what})"
        if why is None or time.monotonic() > ends:
            return why
        await asyncio.sleep(0.2)


async def _doubt(
    connections: tuple[LibvirtConnection, LibvirtConnection], guest: str, *, was_defined_there: bool
) -> str | None:
    """Return what keeps it from being proven, by one look, that a domain never ran at the destination."""
    from vmferry.libvirt.moves.standing import Job, Run

    source, there = connections
    here = await source.standing(guest)
    if here.run is not Run.RUNS:
        return f"{guest} does not run at the source (there it is {here.says or here.run})"
    if here.job is Job.OUT:
        return f"libvirt goes on with the move of {guest}"
    try:
        found = await there.domain(guest)
    except NotFound:
        return None
    if found.is_active:
        return f"{guest} has a process there"
    return (
        f"{guest} is defined there, which it was not before" if found.is_persistent and not was_defined_there else None
    )

"""What is asked of a libvirt domain's move by the command's options, and the images that a copy needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.cli.conftest import Ran

from vmferry.cli import domain_terms
from vmferry.cli.domain_terms import Brake, brake_of, images_for, is_held, parse_terms
from vmferry.conductor.plan import Asked, Choice
from vmferry.core.errors import BadInput, NotFound, Unreachable, VmferryError
from vmferry.core.ids import GuestUuid
from vmferry.core.units import GIB, Bytes, Percent
from vmferry.libvirt.copies import Image, ImagesThere
from vmferry.libvirt.copies.images import Size
from vmferry.libvirt.facts import Domain, DomainState
from vmferry.libvirt.locks import Fence
from vmferry.libvirt.moves.standing import Job, Run, Standing

Vmferry = Callable[..., Ran]
IMAGE = Image("vda", "images", "web-7.qcow2", "qcow2", Size(Bytes(GIB), Bytes(0)))
RUNS = Domain("web-7", GuestUuid("6f1c1a1e-0000-4000-8000-000000000007"), DomainState.PAUSED, is_persistent=False)


def test_nothing_asked_for() -> None:
    """No disk is copied, and the domain is there what it is here."""
    terms = parse_terms({})
    assert (terms.copies, terms.targets, terms.brake) == (False, None, None)
    assert terms.renaming.is_empty
    assert terms.tuning.flow is None


def test_disks_that_are_named_are_copied() -> None:
    """Naming one is asking for its copy; without names it is every one."""
    assert parse_terms({"copy_disks": True}).targets is None
    named = parse_terms({"disks": ("vda",)})
    assert (named.copies, named.targets) == (True, ("vda",))


@pytest.mark.parametrize("brake", ["40-writes", "any"])
def test_a_brake_that_libvirt_has_no_order_for(brake: str) -> None:
    """It is refused, with those that there are."""
    with pytest.raises(BadInput, match="take auto-converge or none"):
        parse_terms({"throttle": brake})


@pytest.mark.parametrize(
    ("policy", "brake", "postcopy", "is_on", "begins_with"),
    [
        ("vmferry", None, False, True, 44),  # it cannot steer the brake, so that is bounded by its goal of 90 ms
        ("vmferry", None, True, False, 0),  # post-copy takes less than a brake
        ("ovirt-suspend", None, False, True, 0),
        ("article", None, False, False, 0),
        ("vmferry", "auto-converge", False, True, 0),
        ("vmferry", "none", False, False, 0),
    ],
)
def test_when_qemu_may_brake(policy: str, brake: str | None, postcopy: bool, is_on: bool, begins_with: int) -> None:
    """Where it was asked for, or the policy lets QEMU do it by itself, or has a goal that bounds it."""
    options = {} if brake is None else {"throttle": brake}
    asked = Asked(Choice(policy), Bytes(GIB), None, None, postcopy=postcopy)
    assert brake_of(parse_terms(options), asked) == Brake(is_on, Percent(begins_with))


@pytest.mark.parametrize(
    ("words", "locked", "run", "postcopy", "held"),
    [
        ((), False, Run.RUNS, False, True),
        ((), True, Run.RUNS, False, False),
        (("held=no",), False, Run.RUNS, False, False),
        (("held=yes",), True, Run.RUNS, False, True),
        ((), False, Run.PAUSED, False, False),  # its move would let a domain run that somebody has paused
        ((), False, Run.RUNS, True, False),  # it would stand until the last page is there
        (("paused=yes",), False, Run.RUNS, False, False),
    ],
)
def test_what_is_held_at_its_arrival(
    words: tuple[str, ...], locked: bool, run: Run, postcopy: bool, held: bool
) -> None:
    """A domain that runs and that nothing else keeps from running on both hosts, unless asked otherwise."""
    terms, fence = parse_terms({"libvirt": words}), Fence("", keeps_one=locked)
    assert is_held(terms, fence, Standing(run), postcopy=postcopy) is held


@pytest.mark.parametrize(
    "words", [("--disk", "vda"), ("--libvirt", "flow=direct"), ("--map", "bridge:br0=br1")], ids=lambda words: words[0]
)
@pytest.mark.parametrize("command", ["check", "migrate"])
def test_guests_of_ours_have_none_of_it(command: str, words: tuple[str, str], vmferry: Vmferry) -> None:
    """Nobody is asked: an option that does nothing is a mistake."""
    ran = vmferry(command, "web-7", "host-b", *words)
    assert ran.exit_code == 2
    assert f"{words[0]}: only guests of libvirt hosts have that" in ran.err


@dataclass
class Made:
    """Stands in for the images at the destination, and records in which order it was told what."""

    calls: list[str] = field(default_factory=list)
    holds: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be removed."""
        return not self.holds

    async def make(self) -> None:
        """Make them."""
        self.calls.append("make")
        self.holds = True

    async def remove(self) -> None:
        """Remove what is there."""
        self.calls.append("remove" if self.holds else "nothing")
        self.holds = False

    def keep(self) -> None:
        """Leave them."""
        self.calls.append("keep")
        self.holds = False


class There:
    """A daemon, with its answers about the domain in turn, the last one for ever."""

    def __init__(self, *answers: Domain | Standing | VmferryError) -> None:
        self._answers = list(answers)

    async def domain(self, name: str) -> Any:
        """Return the domain, or fail."""
        return self._next()

    async def standing(self, name: str) -> Any:
        """Return how it stands, or fail."""
        return self._next()

    def _next(self) -> Domain | Standing:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, VmferryError):
            raise answer
        return answer


AWAY = NotFound("no domain web-7")
OFF = replace(RUNS, state=DomainState.SHUTOFF, is_persistent=True)
CRASHED = replace(RUNS, state=DomainState.CRASHED)
HERE = Standing(Run.RUNS, says="running (booted)")
STANDS = Standing(Run.STANDS, says="paused (migration)")
_Says = tuple[Domain | Standing | VmferryError, ...]
#: what the two daemons say after a failure -> (what becomes of the images, words of what is told)
ENDS: dict[str, tuple[_Says, _Says, str, str]] = {
    "nothing is there": ((HERE,), (AWAY,), "remove", ""),
    "its process is ending": ((HERE,), (RUNS, RUNS, AWAY), "remove", ""),
    "the source goes on in a moment": ((STANDS, STANDS, HERE), (AWAY,), "remove", ""),
    "it runs there": ((HERE,), (RUNS,), "keep", "web-7 has a process there"),
    "it crashed there": ((HERE,), (CRASHED,), "keep", "web-7 has a process there"),
    "the move has left its definition there": ((HERE,), (OFF,), "keep", "is defined there, which it was not before"),
    "nobody answers": ((HERE,), (Unreachable("host-b is away"),), "keep", "is not known (host-b is away)"),
    "the source does not answer": ((Unreachable("host-a is away"),), (AWAY,), "keep", "is not known (host-a is away)"),
    "it arrived and powered off": (
        (Standing(Run.OFF, says="shutoff (migrated)"),),
        (OFF,),
        "keep",
        "shutoff (migrated)",
    ),
    "it died there before anybody looked": ((STANDS,), (AWAY,), "keep", "paused (migration)"),
    "it died there in post-copy": (
        (Standing(Run.SPLIT, says="paused"),),
        (AWAY,),
        "keep",
        "does not run at the source",
    ),
    "libvirt goes on with it": ((replace(HERE, job=Job.OUT),), (AWAY,), "keep", "goes on with the move"),
}


@pytest.mark.parametrize("case", ENDS)
async def test_images_after_a_failure(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are removed where it is certain that no guest has them; else they stay, and that is told."""
    here, there, expected, words = ENDS[case]
    pair: Any = (There(*here), There(*there))
    made, told = Made(), list[str]()
    monkeypatch.setattr(domain_terms, "_ENDS_WITHIN_S", 1.0)
    monkeypatch.setattr("vmferry.libvirt.copies.ImagesThere", lambda *_: made)
    with pytest.raises(RuntimeError, match="cut"):
        async with images_for(pair, (IMAGE,), "web-7", told.append, was_defined_there=False):
            raise RuntimeError("cut")
    assert made.calls[:2] == ["make", expected]
    assert words in "".join(told)
    for sentence in ("web-7.qcow2 in pool images stays", "vmferry recover web-7", "virsh vol-delete web-7.qcow2"):
        assert (sentence in "".join(told)) == (expected == "keep")


async def test_images_go_where_the_definition_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It proves nothing then: a person has put it there."""
    made, told = Made(), list[str]()
    monkeypatch.setattr("vmferry.libvirt.copies.ImagesThere", lambda *_: made)
    pair: Any = (There(HERE), There(OFF))
    async with images_for(pair, (IMAGE,), "web-7", told.append, was_defined_there=True):
        pass
    assert (made.calls, told) == (["make", "remove"], [])


async def test_another_ctrl_c_while_the_proof_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images stay, and are told."""
    made, told = Made(), list[str]()
    monkeypatch.setattr("vmferry.libvirt.copies.ImagesThere", lambda *_: made)
    pair: Any = (There(HERE), There(RUNS))

    async def work() -> None:
        async with images_for(pair, (IMAGE,), "web-7", told.append, was_defined_there=False):
            pass

    working = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert made.calls == ["make", "keep"]
    assert "interrupted" in told[0]


async def test_images_of_a_domain_that_arrived_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon is not even asked."""
    made, told = Made(), list[str]()
    monkeypatch.setattr("vmferry.libvirt.copies.ImagesThere", lambda *_: made)
    pair: Any = (There(Unreachable("not to be asked")),) * 2
    async with images_for(pair, (IMAGE,), "web-7", told.append, was_defined_there=False) as images:
        images.keep()
    assert made.calls == ["make", "keep", "nothing"]
    assert told == []


def test_the_stand_in_has_what_the_real_one_has() -> None:
    """Else the tests above would prove nothing."""
    names = {name for name in vars(ImagesThere) if not name.startswith("_")}
    assert names == {"is_empty", "make", "remove", "keep"}

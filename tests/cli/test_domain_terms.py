"""What is asked of a libvirt domain's move by the command's options, and the images that a copy needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from tests.cli.conftest import Ran

from vmferry.cli import domain_terms
from vmferry.cli.domain_terms import images_for, is_braked, parse_terms
from vmferry.conductor.plan import Asked, Choice
from vmferry.core.errors import BadInput, NotFound, Unreachable, VmferryError
from vmferry.core.ids import GuestUuid
from vmferry.core.units import GIB, Bytes
from vmferry.libvirt.copies import Image, ImagesThere
from vmferry.libvirt.copies.images import Size
from vmferry.libvirt.facts import Domain, DomainState

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
    ("policy", "brake", "is_on"),
    [
        ("vmferry", None, False),  # it wants to steer the brake, and cannot
        ("ovirt-suspend", None, True),
        ("vmferry", "auto-converge", True),
        ("vmferry", "none", False),
    ],
)
def test_when_qemu_may_brake(policy: str, brake: str | None, is_on: bool) -> None:
    """Where it was asked for, or the policy lets QEMU do it by itself."""
    options = {} if brake is None else {"throttle": brake}
    assert is_braked(parse_terms(options), Asked(Choice(policy), Bytes(GIB), None, None)) is is_on


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
    """The destination's daemon, with its answers about the domain in turn, the last one for ever."""

    def __init__(self, *answers: Domain | VmferryError) -> None:
        self._answers = list(answers)

    async def domain(self, name: str) -> Domain:
        """Return the domain, or fail."""
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, VmferryError):
            raise answer
        return answer


AWAY = NotFound("no domain web-7")
#: what the destination's daemon says after a failure -> (what becomes of the images, words of what is told)
ENDS: dict[str, tuple[tuple[Domain | VmferryError, ...], str, str]] = {
    "nothing is there": ((AWAY,), "remove", ""),
    "its process is ending": ((RUNS, RUNS, AWAY), "remove", ""),
    "it runs there": ((RUNS,), "keep", "web-7 has a process there"),
    "nobody answers": ((Unreachable("host-b is away"),), "keep", "is not known (host-b is away)"),
}


@pytest.mark.parametrize("case", ENDS)
async def test_images_after_a_failure(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are removed where it is certain that no guest has them; else they stay, and that is told."""
    answers, expected, words = ENDS[case]
    made, told = Made(), list[str]()
    monkeypatch.setattr(domain_terms, "_ENDS_WITHIN_S", 1.0)
    monkeypatch.setattr("vmferry.libvirt.copies.ImagesThere", lambda *_: made)
    with pytest.raises(RuntimeError, match="cut"):
        async with images_for(There(*answers), (IMAGE,), "web-7", told.append):  # type: ignore[arg-type]  # a fake
            raise RuntimeError("cut")
    assert made.calls[:2] == ["make", expected]
    assert words in "".join(told)
    assert ("web-7.qcow2 in pool images stays" in "".join(told)) == (expected == "keep")


async def test_images_of_a_domain_that_arrived_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon is not even asked."""
    made, told = Made(), list[str]()
    monkeypatch.setattr("vmferry.libvirt.copies.ImagesThere", lambda *_: made)
    there = There(Unreachable("not to be asked"))
    async with images_for(there, (IMAGE,), "web-7", told.append) as images:  # type: ignore[arg-type]  # a fake
        images.keep()
    assert made.calls == ["make", "keep", "nothing"]
    assert told == []


def test_the_stand_in_has_what_the_real_one_has() -> None:
    """Else the tests above would prove nothing."""
    names = {name for name in vars(ImagesThere) if not name.startswith("_")}
    assert names == {"is_empty", "make", "remove", "keep"}

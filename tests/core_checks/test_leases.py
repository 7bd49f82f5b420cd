"""Leases of images: both hosts take them from one lockspace, the guest has its own, and only then is it promised."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core_checks.conftest import DISK, with_runtime, with_spec

from vmferry.core.checks import Case, find_blockers, guarantee, have_watchdogs, images_with_leases
from vmferry.core.disk_leases import DiskLeaseFacts, leased_images
from vmferry.core.errors import Blocker
from vmferry.core.guest import Disk, UefiBoot
from vmferry.core.progress import Guarantee

ONE_HOST, UNREADY, OTHER = "disk.lease-one-host", "disk.lease-unready", "disk.lease-other-lockspace"
SAME_ID, NOT_SEEN, NOT_HELD = "disk.lease-same-host-id", "disk.lease-not-seen", "disk.lease-not-held"
ALIVE = ((1, 4), (2, 7))
HERE = DiskLeaseFacts("vmferry", 1, ("/srv/vmferry",), watchdog=True, alive=ALIVE)
THERE = replace(HERE, host_id=2)
DOWN = Blocker(UNREADY, "sanlock's daemon does not answer", "start it")


def with_leases(case: Case, here: DiskLeaseFacts | None, there: DiskLeaseFacts | None) -> Case:
    """Return the case with how both hosts take leases."""
    source, destination = replace(case.source, disk_leases=here), replace(case.destination, disk_leases=there)
    return replace(case, source=source, destination=destination)


def promised(case: Case) -> Guarantee:
    """Return what is promised."""
    leased, watchdogs = images_with_leases(case), have_watchdogs(case)
    return guarantee(case.guest, case.runtime, case.probe, leased=leased, watchdogs=watchdogs)


@pytest.mark.parametrize(
    ("here", "there", "code", "what", "fix"),
    [
        (HERE, None, ONE_HOST, ["on host-a and not on host-b", DISK], "agent.toml of both hosts"),
        (None, THERE, ONE_HOST, ["on host-b and not on host-a", DISK], "agent.toml of both hosts"),
        (HERE, replace(THERE, alive=(), problem=DOWN), UNREADY, ["host-b", "does not answer"], "on host-b: start it"),
        (replace(HERE, alive=(), problem=DOWN), THERE, UNREADY, ["host-a", "does not answer"], "on host-a: start it"),
        (HERE, replace(THERE, lockspace="other"), OTHER, ["lockspace vmferry", "lockspace other"], "same lockspace"),
        (HERE, replace(THERE, image_dirs=("/mnt",)), OTHER, [f"host-a leases {DISK}", "host-b leases none"], "image_d"),
        (HERE, replace(HERE), SAME_ID, ["host-a and host-b", "host_id 1"], "host_id of its own"),
        (HERE, replace(THERE, alive=((2, 7),)), NOT_SEEN, ["host-b is 2 (generation 7) and sees 2 (g"], "same storage"),
        (replace(HERE, alive=((1, 4), (2, 6))), THERE, NOT_SEEN, ["sees 1 (generation 4), 2 (generation 6)"], "wait"),
        (replace(HERE, alive=((2, 7),)), THERE, NOT_SEEN, ["host-a is not there and sees 2"], "half a minute"),
    ],
)
def test_each_fault_gives_its_blocker(
    case: Case, here: DiskLeaseFacts | None, there: DiskLeaseFacts | None, code: str, what: list[str], fix: str
) -> None:
    """A fault gives its own code and no other, says on which host it is, and what to do there."""
    (blocker,) = find_blockers(with_leases(case, here, there))
    assert blocker.code == code
    assert [word for word in what if word not in blocker.what] == []
    assert fix in blocker.fix


def test_a_guest_without_its_lease_is_told(case: Case) -> None:
    """A guest from before is to be started anew; where nobody can ask, the reason for that is told alone."""
    leased = with_leases(with_runtime(case, unleased=(DISK,)), HERE, THERE)
    (blocker,) = find_blockers(leased)
    assert (blocker.code, DISK in blocker.what) == (NOT_HELD, True)
    assert "vmferry guest stop web-7" in blocker.fix
    down = with_leases(leased, replace(HERE, alive=(), problem=DOWN), THERE)
    assert [blocker.code for blocker in find_blockers(down)] == [UNREADY]


def test_everything_is_told_at_once(case: Case) -> None:
    """Two hosts without a daemon, and two lockspaces, are three."""
    bad = with_leases(case, replace(HERE, problem=DOWN), replace(THERE, lockspace="other", problem=DOWN))
    assert [blocker.code for blocker in find_blockers(bad)] == [UNREADY, UNREADY, OTHER]


def test_a_guest_without_leased_images_is_not_asked(case: Case) -> None:
    """What writes nothing below the directories moves between any two hosts."""
    for elsewhere in (with_spec(case, disks=(Disk(DISK, read_only=True),)), case):
        away = replace(HERE, image_dirs=("/srv/vm", "/mnt"))
        assert find_blockers(with_leases(elsewhere, away, None)) == ()
    assert find_blockers(with_leases(with_spec(case, disks=()), HERE, None)) == ()


@pytest.mark.parametrize(
    ("here", "there", "fence"),
    [
        (HERE, THERE, "sanlock"),
        (HERE, replace(THERE, watchdog=False), "sanlock (no watchdog)"),
        (replace(HERE, watchdog=False), THERE, "sanlock (no watchdog)"),
        (None, None, "image locks (NFSv4)"),
    ],
)
def test_the_fence_is_told(case: Case, here: DiskLeaseFacts | None, there: DiskLeaseFacts | None, fence: str) -> None:
    """Where both hosts take leases they are the fence, and a host that nobody resets is not kept quiet about."""
    promise = promised(with_leases(case, here, there))
    assert promise.disk_fence == fence
    assert ("not reset" in promise.sentence) is (fence == "sanlock (no watchdog)")


def test_a_disk_without_a_lease_takes_the_promise_away(case: Case) -> None:
    """The weakest disk decides: one that has neither lease nor lock leaves none."""
    two = with_leases(with_spec(case, disks=(Disk(DISK), Disk("/elsewhere/data.raw"))), HERE, THERE)
    assert promised(two).disk_fence == "none"


def test_which_images_have_leases(case: Case) -> None:
    """Everything that is written below a directory, UEFI's variables too; a directory of a longer name is another."""
    disks = (Disk("/srv/nfs/a.raw"), Disk("/srv/nfs2/b.raw"), Disk("/srv/nfs/c.raw", read_only=True), Disk("/srv/nfs"))
    spec = replace(case.guest.spec, disks=disks, boot=UefiBoot("/srv/nfs/code.fd", "/srv/nfs/vars.fd"))
    assert leased_images(spec, ("/srv/nfs",)) == ("/srv/nfs/a.raw", "/srv/nfs/vars.fd")
    assert leased_images(spec, ("/srv/nfs/../nfs/", "/other")) == ("/srv/nfs/a.raw", "/srv/nfs/vars.fd")
    assert len(leased_images(spec, ("/",))) == 4
    assert leased_images(spec, ()) == ()

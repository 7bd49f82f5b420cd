"""What is said of lock managers, which libvirt itself does not tell."""

from __future__ import annotations

import pytest

from vmferry.libvirt.locks import LOCK_MANAGERS, fence_of
from vmferry.libvirt.tree import Element, parse

HOSTS = ("host-a", "host-b")
FILE = "<disk type='file' device='disk'><source file='/srv/web-7.qcow2'/>{}</disk>"


def domain_with(disks: str) -> Element:
    """Return a domain's XML."""
    return parse(f"<domain type='kvm'><devices>{disks}</devices></domain>")


DOMAIN = domain_with(FILE.format(""))


def test_nothing_is_claimed_that_nobody_said() -> None:
    """Whose lock manager is not known is named, and how to say it."""
    fence = fence_of(HOSTS, (None, None), DOMAIN, copied=False)
    assert fence.blockers == ()
    assert "whether host-a and host-b has a lock manager libvirt does not tell" in fence.text
    assert "--lock-manager" in fence.text
    half = fence_of(HOSTS, ("lockd", None), DOMAIN, copied=False)
    assert "whether host-b has a lock manager" in half.text
    assert "virtlockd" not in half.text


@pytest.mark.parametrize(("said", "word"), [("lockd", "virtlockd"), ("sanlock", "sanlock")])
def test_what_was_said_of_both_is_told_as_said(said: str, word: str) -> None:
    """It is the operator's word."""
    assert fence_of(HOSTS, (said, said), DOMAIN, copied=False).text.startswith(
        f"{word}, as was said of both hosts; QEMU's own"
    )


def test_without_one_there_are_qemus_locks() -> None:
    """And no word of another."""
    assert fence_of(HOSTS, ("none", "none"), DOMAIN, copied=False).text == (
        "QEMU's own image locks, where the storage has locks"
    )


@pytest.mark.parametrize("here", LOCK_MANAGERS)
@pytest.mark.parametrize("there", LOCK_MANAGERS)
def test_two_that_differ_block(here: str, there: str) -> None:
    """The disks would be locked on one host only; who has which is told."""
    fence = fence_of(HOSTS, (here, there), DOMAIN, copied=False)
    assert [blocker.code for blocker in fence.blockers] == ["lock.differs"] * (here != there)
    if here != there:
        assert "host-a is said to have" in fence.text
        assert "host-b" in fence.text


def test_copied_disks_are_two() -> None:
    """No lock of one keeps anybody off the other."""
    fence = fence_of(HOSTS, ("lockd", "lockd"), DOMAIN, copied=True)
    assert fence.text.startswith("separate copies, each of its own host's; for each: virtlockd")
    assert not fence.keeps_one


@pytest.mark.parametrize(
    ("disks", "is_locked"),
    [
        ("", False),
        (FILE.format(""), True),
        ("<disk type='block' device='disk'><source dev='/dev/vg/web-7'/></disk>", True),
        (FILE.format("<readonly/>"), False),
        (FILE.format("<shareable/>"), False),
        (FILE.format("<readonly/>") + FILE.format(""), True),
        ("<disk type='file' device='cdrom'><readonly/></disk>", False),
        ("<disk type='network' device='disk'><source protocol='rbd' name='pool/web-7'/></disk>", False),
    ],
)
def test_only_an_image_that_one_qemu_writes_keeps_it_from_running_twice(disks: str, is_locked: bool) -> None:
    """What is read only, shared or behind a network's protocol keeps nobody from running."""
    fence = fence_of(HOSTS, ("lockd", "lockd"), domain_with(disks), copied=False)
    assert fence.keeps_one is is_locked
    assert fence.text.startswith("none: ") is not is_locked

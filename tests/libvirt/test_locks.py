"""What is said of lock managers, which libvirt itself does not tell."""

from __future__ import annotations

import pytest

from vmferry.libvirt.locks import LOCK_MANAGERS, fence_of

HOSTS = ("host-a", "host-b")


def test_nothing_is_claimed_that_nobody_said() -> None:
    """Whose lock manager is not known is named, and how to say it."""
    fence = fence_of(HOSTS, (None, None), copied=False)
    assert fence.blockers == ()
    assert "whether host-a and host-b has a lock manager libvirt does not tell" in fence.text
    assert "--lock-manager" in fence.text
    half = fence_of(HOSTS, ("lockd", None), copied=False)
    assert "whether host-b has a lock manager" in half.text
    assert "virtlockd" not in half.text


@pytest.mark.parametrize(("said", "word"), [("lockd", "virtlockd"), ("sanlock", "sanlock")])
def test_what_was_said_of_both_is_told_as_said(said: str, word: str) -> None:
    """It is the operator's word."""
    assert fence_of(HOSTS, (said, said), copied=False).text.startswith(f"{word}, as was said of both hosts; QEMU's own")


def test_without_one_there_are_qemus_locks() -> None:
    """And no word of another."""
    assert fence_of(HOSTS, ("none", "none"), copied=False).text == (
        "QEMU's own image locks, where the storage has locks"
    )


@pytest.mark.parametrize("here", LOCK_MANAGERS)
@pytest.mark.parametrize("there", LOCK_MANAGERS)
def test_two_that_differ_block(here: str, there: str) -> None:
    """Libvirt would refuse the move; who has which is told."""
    fence = fence_of(HOSTS, (here, there), copied=False)
    assert [blocker.code for blocker in fence.blockers] == ["lock.differs"] * (here != there)
    if here != there:
        assert "host-a is said to have" in fence.text
        assert "host-b" in fence.text


def test_copied_disks_are_two() -> None:
    """No lock of one keeps anybody off the other."""
    assert fence_of(HOSTS, ("lockd", "lockd"), copied=True).text.startswith("separate copies; for each: virtlockd")

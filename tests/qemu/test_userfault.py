"""Whether a host lets an unprivileged QEMU be the destination of a post-copy, and what it says if not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmferry.qemu import userfault
from vmferry.qemu.userfault import userfault_groups, why_no_userfault

UID = 70001
NEW, OLD = (10, 0, 2), (7, 2, 22)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device of ours that only its owner may open, and a sysctl that allows nothing."""
    path, sysctl = tmp_path / "userfaultfd", tmp_path / "sysctl"
    path.touch(mode=0o600)
    sysctl.write_text("0\n")
    monkeypatch.setattr(userfault, "DEVICE", path)
    monkeypatch.setattr(userfault, "SYSCTL", sysctl)
    return path


def test_a_private_device_is_told_with_its_fix(device: Path) -> None:
    """Nobody but root may open it: the reason names the uid, the file and the udev rule; root needs nothing."""
    assert (why := why_no_userfault(UID, NEW)) is not None
    assert all(word in why for word in (str(UID), str(device), "udev"))
    assert why_no_userfault(0, NEW) is None


def test_an_open_device_is_enough_for_new_ones_only(device: Path) -> None:
    """10.0 opens the device, 7.2 does not know it: its reason names the sysctl."""
    device.chmod(0o666)
    assert why_no_userfault(UID, NEW) is None
    assert "vm.unprivileged_userfaultfd" in str(why_no_userfault(UID, OLD))


def test_the_sysctl_is_enough_for_all(device: Path) -> None:
    """With the sysctl every version and user may."""
    userfault.SYSCTL.write_text("1\n")
    assert [why_no_userfault(UID, version) for version in (NEW, OLD)] == [None, None]
    assert device.exists()


def test_a_missing_device_is_no_crash(device: Path) -> None:
    """A kernel without the device allows nothing."""
    device.unlink()
    assert why_no_userfault(UID, NEW) is not None
    assert userfault_groups() == []


@pytest.mark.root
def test_a_group_of_the_device_is_given_to_the_process(device: Path) -> None:
    """A group that may read and write is passed on; one that may only read, or root's own, is not."""
    os.chown(device, 0, 70002)
    for mode, groups in ((0o660, [70002]), (0o640, [])):
        device.chmod(mode)
        assert userfault_groups() == groups
        assert (why_no_userfault(UID, NEW) is None) == bool(groups)
    os.chown(device, 0, 0)
    device.chmod(0o660)
    assert userfault_groups() == []


def test_an_agent_outside_the_group_has_no_access(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a process with a user of its own is put into the device's group; the agent's own user must be in it."""
    device.chmod(0o660)
    monkeypatch.setattr(userfault, "userfault_groups", lambda: [54321])
    monkeypatch.setattr("vmferry.qemu.userfault.os.geteuid", lambda: 1000)
    assert why_no_userfault(None, NEW) is not None
    assert why_no_userfault(UID, NEW) is None

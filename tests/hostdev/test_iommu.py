"""What keeps an IOMMU off: firmware or kernel; and the kernel is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vmferry.core.errors import Broken, Refused
from vmferry.core.iommu import IommuFacts, IommuState, look_at
from vmferry.hostdev import Sysfs
from vmferry.hostdev.iommu import GRUB_FILE, iommu_facts, write_options

INTEL, AMD, NONE = frozenset({"DMAR"}), frozenset({"IVRS"}), frozenset[str]()
ON = ("intel_iommu=on", "iommu=pt")


@pytest.mark.parametrize(
    ("facts", "state", "options"),
    [
        (IommuFacts(INTEL, ("quiet", *ON), 12), IommuState.READY, ()),
        (IommuFacts(NONE, ("quiet", *ON), 0), IommuState.FIRMWARE, ()),
        (IommuFacts(INTEL, ("quiet",), 0), IommuState.KERNEL, ON),
        (IommuFacts(INTEL, ("intel_iommu=on",), 0), IommuState.KERNEL, ("iommu=pt",)),
        (IommuFacts(INTEL, ("quiet",), 0, ON), IommuState.REBOOT, ()),
        (IommuFacts(INTEL, ("intel_iommu=off",), 0, ON), IommuState.FORBIDDEN, ()),
        (IommuFacts(AMD, ("amd_iommu=off",), 0), IommuState.FORBIDDEN, ()),
        (IommuFacts(AMD, ("quiet",), 0), IommuState.UNKNOWN, ()),
        (IommuFacts(INTEL, ON, 0), IommuState.UNKNOWN, ()),
    ],
)
def test_what_stands_in_the_way(facts: IommuFacts, state: IommuState, options: tuple[str, ...]) -> None:
    """One thing at a time, each with what to do."""
    found = look_at(facts)
    assert (found.state, found.options) == (state, options)
    assert (found.fix is None) is (state is IommuState.READY)


def machine(root: Path, *, table: str | None = "DMAR", update: str = "exit 0") -> Sysfs:
    """Make a machine with GRUB whose firmware has a table."""
    (root / "sys/firmware/acpi/tables").mkdir(parents=True)
    if table is not None:
        (root / "sys/firmware/acpi/tables" / table).touch()
    (root / "proc").mkdir()
    (root / "proc/cmdline").write_text("BOOT_IMAGE=/vmlinuz quiet\n")
    (root / "etc/default/grub.d").mkdir(parents=True)
    (root / "bin").mkdir()
    script = root / "bin/update-grub"
    script.write_text(f"#!/bin/sh\n{update}\n")
    script.chmod(0o755)
    return Sysfs(root / "sys")


def test_the_kernel_is_told_and_that_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs a reboot then; after it the groups are there."""
    sysfs = machine(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    found = look_at(iommu_facts(sysfs, tmp_path))
    assert found.options == ON
    file = write_options(found.options, tmp_path)
    assert file.read_text() == 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT intel_iommu=on iommu=pt"\n'
    assert look_at(iommu_facts(sysfs, tmp_path)).state is IommuState.REBOOT
    (tmp_path / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    assert look_at(iommu_facts(sysfs, tmp_path)).state is IommuState.READY


def test_grub_that_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the file, nor a half of one; what was there before is there again."""
    machine(tmp_path, update="echo no room >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin")
    with pytest.raises(Broken, match="no room"):
        write_options(ON, tmp_path)
    assert list((tmp_path / "etc/default/grub.d").iterdir()) == []
    (tmp_path / GRUB_FILE).write_text("# mine\n")
    with pytest.raises(Broken):
        write_options(ON, tmp_path)
    assert (tmp_path / GRUB_FILE).read_text() == "# mine\n"


def test_a_machine_without_grub_is_told_what_to_add(tmp_path: Path) -> None:
    """Where it starts its kernel is not ours to guess."""
    machine(tmp_path)
    shutil.rmtree(tmp_path / "etc")
    with pytest.raises(Refused, match="not started by GRUB") as caught:
        write_options(ON, tmp_path)
    assert "intel_iommu=on iommu=pt" in str(caught.value.fix)


def test_this_machine_can_be_looked_at() -> None:
    """Whatever it has."""
    assert look_at(iommu_facts(Sysfs())).state in IommuState

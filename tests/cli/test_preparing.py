"""`vmferry host prepare`: what it says of this machine's IOMMU, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Ran

from vmferry.core.iommu import IommuFacts
from vmferry.hostdev import iommu

Vmferry = Callable[..., Ran]
ON = ("intel_iommu=on", "iommu=pt")
OFF = IommuFacts(frozenset({"DMAR"}), ("quiet",), 0)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[IommuFacts]:
    """What the command sees, each time one of these."""
    facts: list[IommuFacts] = []
    monkeypatch.setattr(iommu, "iommu_facts", lambda _: facts.pop(0))
    return facts


def test_a_ready_machine(vmferry: Vmferry, seen: list[IommuFacts]) -> None:
    """One line."""
    seen.append(IommuFacts(frozenset({"DMAR"}), ON, 14))
    ran = vmferry("host", "prepare", "--iommu")
    assert (ran.exit_code, ran.out) == (0, "the IOMMU is in use: devices are in 14 groups\n")


@pytest.mark.parametrize(
    ("facts", "code", "words"),
    [
        (IommuFacts(frozenset(), ON, 0), "iommu.firmware", "neither table DMAR nor IVRS"),
        (OFF, "iommu.kernel", "`vmferry host prepare --iommu --write` tells it"),
    ],
)
def test_what_is_in_the_way_is_an_error(
    vmferry: Vmferry, seen: list[IommuFacts], facts: IommuFacts, code: str, words: str
) -> None:
    """Firmware is told from kernel."""
    seen += [facts, facts]
    ran = vmferry("host", "prepare", "--iommu")
    assert (ran.exit_code, ran.out) == (3, "")
    assert code in ran.err
    assert words in ran.err
    problem = json.loads(vmferry("host", "prepare", "--iommu", "--json").out)
    assert [blocker["code"] for blocker in problem["blockers"]] == [code]


def test_the_kernel_is_told(vmferry: Vmferry, seen: list[IommuFacts], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is missing is written, and what is to be done next is said."""
    written: list[tuple[str, ...]] = []

    def write(options: tuple[str, ...]) -> Path:
        written.append(options)
        return Path("/etc/default/grub.d/vmferry-iommu.cfg")

    monkeypatch.setattr(iommu, "write_options", write)
    seen += [OFF, IommuFacts(frozenset({"DMAR"}), ("quiet",), 0, ON)]
    ran = vmferry("host", "prepare", "--iommu", "--write")
    assert ran.exit_code == 0
    assert ran.out.splitlines() == [
        "written: /etc/default/grub.d/vmferry-iommu.cfg",
        "the kernel uses VT-d from its next start on; reboot, and ask again",
    ]
    assert written == [ON]


def test_nothing_is_written_that_would_not_help(vmferry: Vmferry, seen: list[IommuFacts]) -> None:
    """Where the firmware has none."""
    seen.append(IommuFacts(frozenset(), ("quiet",), 0))
    assert vmferry("host", "prepare", "--iommu", "--write").exit_code == 3


def test_what_to_prepare_has_to_be_said(vmferry: Vmferry) -> None:
    """There may be more of it one day."""
    ran = vmferry("host", "prepare")
    assert (ran.exit_code, ran.out) == (2, "")
    assert "give --iommu" in ran.err

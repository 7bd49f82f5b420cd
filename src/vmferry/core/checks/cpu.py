"""The CPU that the guest saw at its start must exist at the destination, bit for bit, under the same accelerator."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.errors import Blocker
from vmferry.core.guest import Acceleration

#: What to propose when the guest's model does not fit, from the most to the least capable.
#: Only models that many machines have; the rest of QEMU's list stays for those who know why.
PROPOSALS = (
    "EPYC-Genoa",
    "SapphireRapids",
    "EPYC-Milan",
    "Icelake-Server",
    "EPYC-Rome",
    "Cascadelake-Server",
    "EPYC",
    "Skylake-Server",
    "Broadwell",
    "Haswell",
    "IvyBridge",
    "SandyBridge",
    "Westmere",
    "Nehalem",
    "Penryn",
    "Conroe",
    "qemu64",
    "kvm64",
)


def check_acceleration(case: Case) -> Iterator[Blocker]:
    """A guest that was started with KVM goes on with KVM: TCG offers another CPU and other clocks.

    The other way round is fine: a host with KVM runs a TCG guest with TCG.
    """
    if case.guest.acceleration is not Acceleration.KVM or case.destination.acceleration is Acceleration.KVM:
        return
    there = case.destination
    yield Blocker(
        "accelerator.differs",
        f"guest {case.guest.spec.name} runs with KVM, {there.name} has {there.acceleration.value.upper()} only"
        f" ({there.acceleration_reason})",
        f"choose a host with KVM, make KVM work on {there.name}, or restart the guest with acceleration = "
        '"tcg" in its file',
    )


def check_cpu(case: Case) -> Iterator[Blocker]:
    """Every feature of the guest's expanded CPU exists at the destination, and QEMU there accepts the CPU."""
    missing = tuple(dict.fromkeys(case.probe.cpu_missing_features))
    if missing:
        yield Blocker(
            "cpu.features-missing",
            f"{case.destination.name} lacks {len(missing)} CPU feature(s) that guest {case.guest.spec.name} has seen"
            f" (model {case.guest.spec.cpu}): {', '.join(missing)}",
            _advice(case, missing),
        )
    if case.probe.cpu_error is not None:
        yield Blocker(
            "cpu.refused",
            f"QEMU on {case.destination.name} refuses CPU {case.guest.spec.cpu} of guest {case.guest.spec.name}:"
            f" {case.probe.cpu_error}",
            _advice(case, ()),
        )


def _advice(case: Case, missing: tuple[str, ...]) -> str:
    """Name the model that both hosts offer, or the features to switch off, for the guest file."""
    model = case.guest.spec.cpu.split(",")[0]
    both = case.source.qemu.cpu_models & case.destination.qemu.cpu_models
    proposal = next((name for name in PROPOSALS if name in both and name != model), None)
    ways = []
    if missing and model in case.destination.qemu.cpu_models:
        without = ",".join((case.guest.spec.cpu, *(f"-{feature}" for feature in missing)))
        ways.append(f'cpu = "{without}" (without them)')
    if proposal is not None:
        ways.append(f'cpu = "{proposal}" (both hosts offer it)')
    if not ways:
        return f"choose another host than {case.destination.name}: no well-known CPU model is offered by both"
    return "restart the guest with " + " or ".join(ways) + " in its file, or choose another host"

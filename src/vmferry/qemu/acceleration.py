"""KVM or TCG: decided by what really runs, not by what can be opened.

There are hosts on which /dev/kvm opens and a guest never gets anywhere. So KVM counts only when the CPU has the flag
and a guest of ten bytes ran under it within a deadline.
Source: QEMU hw/misc/debugexit.c, Linux arch/x86/include/asm/cpufeatures.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from vmferry.core.errors import VmferryError
from vmferry.core.guest import Acceleration
from vmferry.qemu.binary import QemuBinaryConfig
from vmferry.qemu.command_line import SANDBOX
from vmferry.qemu.process import read_boot_id, spawn

PROBE_DEADLINE_S = 5.0

#: isa-debug-exit ends QEMU with 2 * value + 1
EXIT_VALUE = 0x10
EXIT_STATUS = 2 * EXIT_VALUE + 1

FIRMWARE_BYTES = 64 * 1024

TCG_TAG = "TCG"
NESTED_TAG = "nested KVM"
BARE_TAG = "bare-metal KVM"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What runs guests on this host, and why."""

    acceleration: Acceleration
    reason: str  #: one sentence
    tag: str  #: TCG, nested KVM or bare-metal KVM: printed beside every figure


@dataclass(frozen=True, slots=True)
class Host:
    """Where to look; the defaults are this host."""

    cpuinfo: Path = Path("/proc/cpuinfo")
    device: Path = Path("/dev/kvm")


async def decide(
    binary: QemuBinaryConfig, state_dir: Path, *, override: Acceleration = Acceleration.AUTO, host: Host | None = None
) -> Verdict:
    """Return what runs guests here; a tried verdict is remembered until the host boots or QEMU changes.

    Never fails: whatever goes wrong with KVM means TCG, and stands in the reason.

    Args:
        binary: which QEMU.
        state_dir: where the verdict is remembered.
        override: KVM or TCG by configuration: taken without a trial.
        host: where to look.
    """
    host = host or Host()
    flags = read_cpu_flags(host.cpuinfo)
    if override is not Acceleration.AUTO:
        return Verdict(override, f"{override.upper()} is set by configuration", _tag(override, flags))
    if not flags & {"vmx", "svm"}:
        opens = " although /dev/kvm opens" if os.access(host.device, os.R_OK | os.W_OK) else ""
        return _tcg(f"the CPU has neither vmx nor svm{opens}")
    if not os.access(host.device, os.R_OK | os.W_OK):
        return _tcg(f"{host.device} is missing or may not be opened")
    memory = _Memory(state_dir / "acceleration.json", f"{binary.identity()}|{read_boot_id()}|{os.uname().release}")
    verdict = memory.recall()
    if verdict is None:
        verdict = await _try_kvm(binary, flags)
        memory.remember(verdict)
    return verdict


def read_cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Return the flags of the first CPU; none when the file cannot be read."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text("ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return frozenset(value.split())
    return frozenset()


def make_firmware() -> bytes:
    """Return firmware whose first instructions end QEMU with EXIT_STATUS."""
    # mov al, EXIT_VALUE; out 0xf4, al; hlt; jmp to the hlt
    code = bytes([0xB0, EXIT_VALUE, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD])
    # An x86 CPU starts 16 bytes below the end of the firmware.
    return bytes(FIRMWARE_BYTES - 16) + code.ljust(16, b"\0")


async def run_firmware(
    binary: QemuBinaryConfig, accelerator: str, firmware: bytes, deadline_s: float = PROBE_DEADLINE_S
) -> str | None:
    """Run firmware until it ends QEMU; returns None when it did, else what happened instead.

    However it goes, the process is dead afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="vmferry-accel-") as name:
        directory = Path(name)
        image = directory / "firmware.bin"
        image.write_bytes(firmware)
        log = directory / "log"
        argv = ["-accel", accelerator, "-machine", "q35", "-m", "16", "-bios", "firmware.bin", "-no-reboot"]
        argv += ["-nodefaults", "-no-user-config", "-display", "none", "-sandbox", SANDBOX]
        argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        process = spawn(binary, argv, directory=directory, log=log)
        try:
            if not await process.wait_exited(deadline_s):
                return f"a guest of {len(firmware) // 1024} KiB did not get to its end within {deadline_s:g} s"
            if process.exit_status != EXIT_STATUS:
                words = log.read_text("utf-8", errors="replace").strip().replace("\n", " | ")
                return f"QEMU ended with status {process.exit_status}: {words[-300:] or 'without a word'}"
        finally:
            await asyncio.shield(process.kill())
            process.close()
    return None


async def _try_kvm(binary: QemuBinaryConfig, flags: frozenset[str]) -> Verdict:
    try:
        failure = await run_firmware(binary, "kvm", make_firmware())
    except VmferryError as error:
        failure = error.what
    if failure is not None:
        return _tcg(f"KVM does not work here: {failure}")
    return Verdict(Acceleration.KVM, "a probe guest ran under KVM", _tag(Acceleration.KVM, flags))


def _tcg(reason: str) -> Verdict:
    return Verdict(Acceleration.TCG, reason, TCG_TAG)


def _tag(acceleration: Acceleration, flags: frozenset[str]) -> str:
    if acceleration is not Acceleration.KVM:
        return TCG_TAG
    return NESTED_TAG if "hypervisor" in flags else BARE_TAG


@dataclass(frozen=True, slots=True)
class _Memory:
    """A verdict in a file, valid under one key."""

    path: Path
    key: str

    def recall(self) -> Verdict | None:
        try:
            stored = json.loads(self.path.read_text("utf-8"))
            if stored["key"] != self.key:
                return None
            row = stored["verdict"]
            return Verdict(Acceleration(row["acceleration"]), row["reason"], row["tag"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, verdict: Verdict) -> None:
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            scratch = self.path.with_suffix(".new")
            scratch.write_text(json.dumps({"key": self.key, "verdict": asdict(verdict)}), "utf-8")
            scratch.rename(self.path)

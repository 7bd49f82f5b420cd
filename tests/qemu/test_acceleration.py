"""KVM or TCG is decided by a guest that ran, and a guest that hangs is dead afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmferry.core.guest import Acceleration
from vmferry.qemu import QemuBinaryConfig
from vmferry.qemu import acceleration as module
from vmferry.qemu.acceleration import FIRMWARE_BYTES, Host, Verdict, decide, make_firmware, read_cpu_flags, run_firmware
from vmferry.qemu.process import Process, spawn

#: jumps to itself where the CPU starts
HANGING = bytes(FIRMWARE_BYTES - 16) + b"\xeb\xfe".ljust(16, b"\0")


@pytest.fixture
def program(tmp_path: Path) -> QemuBinaryConfig:
    """A program that must not be run."""
    path = tmp_path / "qemu"
    path.write_text("#!/bin/false\n")
    path.chmod(0o755)
    return QemuBinaryConfig((str(path),))


def make_host(directory: Path, flags: str, *, device: bool = True) -> Host:
    """Return a host whose CPU has these flags."""
    host = Host(directory / "cpuinfo", directory / "kvm")
    host.cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
    if device:
        host.device.touch()
    return host


async def test_no_flag_means_tcg(program: QemuBinaryConfig, tmp_path: Path) -> None:
    """Without vmx or svm it is TCG although the device opens, and nothing is started."""
    verdict = await decide(program, tmp_path, host=make_host(tmp_path, "sse2"))
    assert verdict == Verdict(Acceleration.TCG, "the CPU has neither vmx nor svm although /dev/kvm opens", "TCG")


async def test_no_device_means_tcg(program: QemuBinaryConfig, tmp_path: Path) -> None:
    """With the flag but without the device it is TCG, and the reason names the device."""
    verdict = await decide(program, tmp_path, host=make_host(tmp_path, "vmx", device=False))
    assert verdict.acceleration is Acceleration.TCG
    assert str(tmp_path / "kvm") in verdict.reason


@pytest.mark.parametrize(("flags", "tag"), [("svm", "bare-metal KVM"), ("vmx hypervisor", "nested KVM")])
async def test_a_guest_that_ran_means_kvm(
    flags: str, tag: str, program: QemuBinaryConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the probe guest reached its end it is KVM, tagged by whether this host is a guest itself."""

    async def succeed(*_: object) -> None:
        return None

    monkeypatch.setattr(module, "run_firmware", succeed)
    verdict = await decide(program, tmp_path, host=make_host(tmp_path, flags))
    assert (verdict.acceleration, verdict.tag) == (Acceleration.KVM, tag)


async def test_the_verdict_is_remembered(
    program: QemuBinaryConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict is tried once per boot, kernel and program; a spoilt file means trying again."""
    tries = []

    async def fail(*_: object) -> str:
        tries.append(1)
        return "no"

    monkeypatch.setattr(module, "run_firmware", fail)
    host = make_host(tmp_path, "svm")
    verdicts = {await decide(program, tmp_path, host=host) for _ in range(3)}
    assert verdicts == {Verdict(Acceleration.TCG, "KVM does not work here: no", "TCG")}
    assert len(tries) == 1
    stored = json.loads((tmp_path / "acceleration.json").read_text("utf-8"))
    for spoilt in ("{", "[]", json.dumps({**stored, "key": "another boot"}), json.dumps({"key": stored["key"]})):
        (tmp_path / "acceleration.json").write_text(spoilt)
        await decide(program, tmp_path, host=host)
    assert len(tries) == 5


async def test_configuration_wins(program: QemuBinaryConfig, tmp_path: Path) -> None:
    """An override is taken without a trial, and the reason says so."""
    host = make_host(tmp_path, "hypervisor")
    verdict = await decide(program, tmp_path, override=Acceleration.KVM, host=host)
    assert verdict == Verdict(Acceleration.KVM, "KVM is set by configuration", "nested KVM")


def test_unreadable_cpuinfo_has_no_flags(tmp_path: Path) -> None:
    """A missing or empty cpuinfo is no flags, not an error."""
    (tmp_path / "empty").touch()
    assert read_cpu_flags(tmp_path / "missing") == read_cpu_flags(tmp_path / "empty") == frozenset()


@pytest.mark.real
async def test_firmware_reaches_its_end(binary: QemuBinaryConfig) -> None:
    """The probe guest ends QEMU by itself."""
    assert await run_firmware(binary, "tcg", make_firmware()) is None


@pytest.mark.real
async def test_a_hanging_guest_is_killed(binary: QemuBinaryConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that never gets to its end is dead when the deadline is over, and the reason says how long it was."""
    seen: list[Process] = []

    def spawn_and_tell(*args: object, **kwargs: object) -> Process:
        seen.append(spawn(*args, **kwargs))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(module, "spawn", spawn_and_tell)
    failure = await run_firmware(binary, "tcg", HANGING, deadline_s=0.5)
    assert failure == "a guest of 64 KiB did not get to its end within 0.5 s"
    assert [process.is_alive() for process in seen] == [False]


@pytest.mark.real
async def test_qemus_refusal_is_a_reason(binary: QemuBinaryConfig) -> None:
    """An accelerator that QEMU does not have is told in its own words."""
    failure = await run_firmware(binary, "hax-or-so", make_firmware())
    assert failure is not None
    assert "invalid accelerator" in failure

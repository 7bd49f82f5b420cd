"""What the guest boots from, and what its firmware keeps: the same content there, nothing that stays behind."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.checks.disk import check_copy, check_shared_file, images_to_copy
from vmferry.core.errors import Blocker
from vmferry.core.guest import BiosBoot, KernelBoot, UefiBoot


def check_boot_files(case: Case) -> Iterator[Blocker]:
    """Kernel, initrd and firmware code have the guest's own content at the destination: its next reboot reads them."""
    for label, path in _boot_files(case):
        yield from _check_content(case, label, path)


def check_nvram(case: Case) -> Iterator[Blocker]:
    """The UEFI variables are one file for both hosts, or are copied with what the guest wrote."""
    if not isinstance(case.guest.spec.boot, UefiBoot):
        return
    nvram = case.guest.spec.boot.nvram
    if nvram in {image.path for image in images_to_copy(case)}:
        yield from check_copy(case, nvram, label="nvram")
    else:
        yield from check_shared_file(case, nvram, label="nvram")


def check_tpm(case: Case) -> Iterator[Blocker]:
    """A TPM's state goes along in QEMU's stream: something must give it here, and something must take it there."""
    if not case.guest.has_tpm:
        return
    guest, host = case.guest.spec.name, case.destination.name
    here, there = case.source.tpm_emulator, case.destination.tpm_emulator
    if case.runtime.has_lost_tpm:
        yield Blocker(
            "tpm.emulator-ended",
            f"what emulates the TPM of guest {guest} on {case.source.name} has ended, and cannot give its state",
            f"stop the guest and start it: `vmferry guest stop {guest}`, `vmferry guest start {guest}`",
        )
    if there is None:
        yield Blocker(
            "tpm.emulator-missing",
            f"guest {guest} has a TPM, and {host} has no swtpm that emulates one, or its agent is older",
            f"install swtpm (Debian) on {host}, and this vmferry version",
        )
    elif here is not None and there[:2] < here[:2]:
        yield Blocker(
            "tpm.emulator-older",
            f"swtpm on {host} is {_dotted(there)}, older than {_dotted(here)} on {case.source.name}: it may not read"
            f" the state of guest {guest}'s TPM",
            f"install swtpm {here[0]}.{here[1]} or newer on {host}",
        )


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(str(part) for part in version)


def _boot_files(case: Case) -> tuple[tuple[str, str], ...]:
    """Return (what it is, path) of the files that are read at a boot and never written."""
    match case.guest.spec.boot:
        case KernelBoot(kernel=kernel, initrd=initrd):
            return (("kernel", kernel), *((("initrd", initrd),) if initrd is not None else ()))
        case UefiBoot(code=code):
            return (("firmware", code),)
        case BiosBoot():
            return ()


def _check_content(case: Case, label: str, path: str) -> Iterator[Blocker]:
    host, guest = case.destination.name, case.guest.spec.name
    there = case.at_destination(path)
    if there is None or not there.exists or not there.readable:
        why = f" ({there.error})" if there is not None and there.error else ""
        yield Blocker(
            "boot.file-missing",
            f"{label} {path} of guest {guest} cannot be read on {host}{why}",
            f"copy it from {case.source.name} to the same path on {host}",
        )
        return
    expected = _expected_hash(case, path)
    if expected is not None and there.sha256 == expected:
        return
    yield Blocker(
        "boot.file-differs",
        f"{label} {path} of guest {guest} has other content on {host}: sha256 {_short(there.sha256)}, the guest was"
        f" started with {_short(expected)}",
        f"copy the file that the guest was started with from {case.source.name} to {host}",
    )


def _expected_hash(case: Case, path: str) -> str | None:
    """Return the hash that was frozen with the guest; the source's file of today only when none was."""
    frozen = dict(case.guest.boot_hashes).get(path)
    if frozen is not None:
        return frozen
    here = case.at_source(path)
    return here.sha256 if here is not None else None


def _short(sha256: str | None) -> str:
    return "not known" if sha256 is None else sha256[:12]

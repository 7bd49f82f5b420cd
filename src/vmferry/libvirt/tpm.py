"""A TPM that swtpm emulates.

Its hardware is the same under libvirt and here. What is in it is not: each keeps the state in a place of its own, and
neither takes the other's over yet.

Source: libvirt docs/formatdomain.rst (9.0), TPM device.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.guest import TPM_DRIVER, TPM_VERSION, GuestSpec
from vmferry.libvirt.findings import Findings, short
from vmferry.libvirt.making import add
from vmferry.libvirt.tree import Element

CARRIED: Final = (("devices/tpm (tpm-tis, emulator, 2.0)", "`tpm`, with nothing in it: `--accept tpm`"),)


def read_tpm(devices: Element, found: Findings) -> str | None:
    """Return the TPM's version; what was in it is lost, and that has to be accepted."""
    tpm = devices.one("tpm")
    if tpm is None:
        return None
    model, backend = tpm.get("model"), tpm.one("backend")
    kind = backend.get("type") if backend is not None else None
    version = backend.get("version") if backend is not None else None
    if (model, kind, version) != (TPM_DRIVER, "emulator", TPM_VERSION):
        seen = f"model={short(model)} type={short(kind)} version={short(version)}"
        expected = f"expected model='{TPM_DRIVER}' type='emulator' version='{TPM_VERSION}'"
        found.refuse(tpm, seen, expected, "give the guest such a one, when nothing depends on what is in this one")
        tpm.read_whole()
        return None
    found.ask(tpm, f"{TPM_DRIVER} {TPM_VERSION}", "tpm")
    return TPM_VERSION


def write_tpm(spec: GuestSpec, devices: ET.Element) -> None:
    """Write it, if the guest has one."""
    if spec.tpm is not None:
        add(add(devices, "tpm", model=TPM_DRIVER), "backend", type="emulator", version=spec.tpm)

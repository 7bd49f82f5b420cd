"""The QEMUs that tests run on."""

from __future__ import annotations

import pytest

from vmferry.core.errors import NotFound
from vmferry.lab.toolchain import QemuBinary, find_qemu
from vmferry.qemu import QemuBinaryConfig

#: Newest first.
VERSIONS = ((10, 0), (7, 2))


def find_or_skip(version: tuple[int, int]) -> QemuBinary:
    """Return a QEMU of this machine, or skip the test saying how to get it."""
    try:
        return find_qemu(*version)
    except NotFound as error:
        pytest.skip(str(error))


def binary_of(version: tuple[int, int]) -> QemuBinaryConfig:
    """Return a QEMU of this machine as an agent's configuration names it, or skip saying how to get it."""
    found = find_or_skip(version)
    return QemuBinaryConfig(found.argv, found.env)

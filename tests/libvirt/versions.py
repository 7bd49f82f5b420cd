"""The libvirts that tests run on."""

from __future__ import annotations

import pytest

from vmferry.core.errors import NotFound
from vmferry.lab.toolchain import LibvirtBuild, find_libvirt

#: Oldest first: it is the installed one on Debian 12.
VERSIONS = ((9, 0), (11, 3))
IDS = tuple(f"libvirt-{major}.{minor}" for major, minor in VERSIONS)


def find_or_skip(version: tuple[int, int]) -> LibvirtBuild:
    """Return a libvirt of this machine, or skip the test saying how to get it."""
    try:
        return find_libvirt(*version)
    except NotFound as error:
        pytest.skip(str(error))

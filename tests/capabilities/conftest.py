"""Two hosts with a QEMU each, of any version, and what they offer."""

from __future__ import annotations

import pytest
from tests.qemus import VERSIONS, find_or_skip

from vmferry.core.capabilities import FEATURES, Kind, Resource, Version
from vmferry.core.host import QemuFacts
from vmferry.lab.toolchain import QemuBinary

EVERYTHING = frozenset(Resource)


def make_qemu(major: int, minor: int) -> QemuFacts:
    """Return a QEMU of that version that has everything the table says it has."""
    version: Version = (major, minor)
    there = [one for one in FEATURES if one.since <= version and (one.removed is None or version < one.removed)]
    parameters = {one.name for one in there if one.kind is Kind.PARAMETER}
    return QemuFacts(
        version=(major, minor, 0),
        machines=frozenset(),
        cpu_models=frozenset(),
        capabilities=frozenset(one.name for one in there if one.kind is Kind.CAPABILITY),
        parameters=frozenset({*parameters, "multifd-compression", "max-bandwidth", "downtime-limit", "tls-creds"}),
        devices=frozenset(),
        compressions=frozenset(one.name.removeprefix("multifd-") for one in there if one.kind is Kind.COMPRESSION),
    )


def qemu_7_2() -> QemuFacts:
    """Return the oldest that we support."""
    return make_qemu(7, 2)


def qemu_10_0() -> QemuFacts:
    """Return the newest that is tested."""
    return make_qemu(10, 0)


def qemu_10_2() -> QemuFacts:
    """Return one of which only the source was read."""
    return make_qemu(10, 2)


@pytest.fixture(params=VERSIONS, ids=lambda version: f"{version[0]}.{version[1]}")
def binary(request: pytest.FixtureRequest) -> QemuBinary:
    """Each QEMU of this machine."""
    return find_or_skip(request.param)

"""Runs in a nested host (test_sriov.py): its kernel, its card and its network keep to the kit."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmferry.core.pci import PciAddress
from vmferry.hostdev import Netlink, Sysfs
from vmferry.hostdev.uses import holders
from vmferry.testing.conformance_devices import DevicesConformance, Hold


class TestKernel(DevicesConformance):
    """Linux."""

    @pytest.fixture
    def sysfs(self) -> Sysfs:
        """The real one."""
        return Sysfs()

    @pytest.fixture
    def cards(self) -> Netlink:
        """The real ones."""
        return Netlink()

    @pytest.fixture
    def card(self) -> PciAddress:
        """Where every such host has its first."""
        return PciAddress.parse("01:00.0")

    @pytest.fixture
    def bring_up(self) -> Callable[[str], None]:
        """And wait until it has a link."""

        def up(name: str) -> None:
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            carrier = Path(f"/sys/class/net/{name}/carrier")
            ends = time.monotonic() + 60
            while carrier.read_text() != "1\n":
                assert time.monotonic() < ends, f"{name} has no link"
                time.sleep(0.2)

        return up

    @pytest.fixture
    def hold(self) -> Hold:
        """This process opens the group."""

        @contextmanager
        def held(group: int) -> Iterator[Mapping[str, str]]:
            with Path(f"/dev/vfio/{group}").open("r+b", buffering=0):
                yield holders()

        return held

"""The fakes keep to the kit; tests/nested/test_sriov.py holds a real kernel to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.hostdev import kit
from tests.hostdev.kit import CARD, at, host

from vmferry.core.pci import PciAddress
from vmferry.testing.conformance_devices import DevicesConformance, Hold
from vmferry.testing.fake_cards import FakeCards
from vmferry.testing.fake_sysfs import FakeKernel


class TestFakes(DevicesConformance):
    """A folder, and a table."""

    @pytest.fixture
    def sysfs(self, tmp_path: Path) -> FakeKernel:
        """A host with cards."""
        return host(tmp_path)

    @pytest.fixture
    def cards(self, sysfs: FakeKernel) -> FakeCards:
        """Its cards."""
        return kit.cards(sysfs)

    @pytest.fixture
    def card(self) -> PciAddress:
        """One of them."""
        return at(CARD)

    @pytest.fixture
    def bring_up(self, sysfs: FakeKernel) -> Callable[[str], None]:
        """As `ip link set` does."""
        return lambda name: sysfs.set_up(CARD, name, up=True)

    @pytest.fixture
    def hold(self) -> Hold:
        """A program that is told of only."""

        @contextmanager
        def held(group: int) -> Iterator[Mapping[str, str]]:
            yield {str(group): "qemu-system-x86 (pid 4711)"}

        return held

"""The kit for the host's devices: the same on a kernel with a real card and on `FakeKernel` and `FakeCards`.

Subclass `DevicesConformance` and give it fixtures `sysfs`, `cards`, `card` (one that makes two functions or more, has
its own driver and no functions; it is left like that), `bring_up` (its interface) and `hold` (a program takes an IOMMU
group, and tells the holders that there are then).
"""

# ruff: noqa: S101 - the checks of a kit are assertions

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import pytest

from vmferry.core.errors import BadInput, Broken, Refused
from vmferry.core.functions import NO_MAC, FunctionSettings
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import VFIO, PciDevice
from vmferry.hostdev import Cards, Sysfs, bind, give_back, read_inventory, read_settings, set_function, set_functions

Hold = Callable[[int], AbstractContextManager[Mapping[str, str]]]
MAC = "52:54:00:00:00:09"


class DevicesConformance:
    """The rules."""

    @pytest.fixture(autouse=True)
    def _as_before(self, sysfs: Sysfs, cards: Cards, card: PciAddress) -> Iterator[None]:
        yield
        set_functions(sysfs, cards, card, 0)
        assert self.look(sysfs, card).driver not in {None, VFIO}

    def look(self, sysfs: Sysfs, address: PciAddress) -> PciDevice:
        """Return a device as it is now."""
        return read_inventory(sysfs).devices[address]

    def test_a_card_says_what_it_is(self, sysfs: Sysfs, card: PciAddress) -> None:
        """A network card of PCI Express in a group, with its interface and a bridge above it."""
        found = self.look(sysfs, card)
        assert found.is_network
        assert found.is_express
        assert (found.physical, len(found.nets), len(found.above)) == (None, 1, 1)
        assert found.sriov is not None
        assert found.sriov.total >= 2
        assert read_inventory(sysfs).has_iommu

    def test_functions_are_made_and_ended(self, sysfs: Sysfs, cards: Cards, card: PciAddress) -> None:
        """Each in a group of its own, with no driver, and free to be given away; the card is not any more."""
        made = set_functions(sysfs, cards, card, 2)
        found = read_inventory(sysfs)
        functions = [found.devices[one] for one in made.functions]
        assert [(one.physical, one.driver) for one in functions] == [(card, None)] * 2
        assert len({one.iommu_group for one in functions} - {None}) == 2
        assert [found.why_not(one) for one in functions] == [(), ()]
        assert "pci.has-functions" in [one.code for one in found.why_not(found.devices[card])]
        assert set_functions(sysfs, cards, card, 0).functions == ()
        assert not set(made.functions) & set(read_inventory(sysfs).devices)

    def test_from_one_number_to_another(self, sysfs: Sysfs, cards: Cards, card: PciAddress) -> None:
        """The kernel alone refuses that."""
        assert set_functions(sysfs, cards, card, 1).count == 1
        with pytest.raises(OSError, match="busy"):
            sysfs.write(f"bus/pci/devices/{card}/sriov_numvfs", "2")
        assert set_functions(sysfs, cards, card, 2).count == 2
        assert set_functions(sysfs, cards, card, 2).count == 2

    def test_more_than_it_makes(self, sysfs: Sysfs, cards: Cards, card: PciAddress) -> None:
        """By the kernel's word too."""
        sriov = self.look(sysfs, card).sriov
        assert sriov is not None
        with pytest.raises(BadInput):
            set_functions(sysfs, cards, card, sriov.total + 1)
        with pytest.raises(OSError, match="range"):
            sysfs.write(f"bus/pci/devices/{card}/sriov_numvfs", str(sriov.total + 1))

    def test_a_function_goes_to_vfio_and_back(self, sysfs: Sysfs, cards: Cards, card: PciAddress) -> None:
        """Twice; the host's drivers leave it alone afterwards."""
        function = set_functions(sysfs, cards, card, 1).functions[0]
        for _ in range(2):
            bind(sysfs, function)
            bind(sysfs, function)
            assert (self.look(sysfs, function).driver, self.look(sysfs, function).override) == (VFIO, VFIO)
            assert give_back(sysfs, function) is None
            assert (self.look(sysfs, function).driver, self.look(sysfs, function).override) == (None, None)

    def test_a_card_goes_to_vfio_and_back(self, sysfs: Sysfs, cards: Cards, card: PciAddress) -> None:
        """Its interface goes and comes; meanwhile it makes no functions."""
        before = self.look(sysfs, card).driver
        bind(sysfs, card)
        assert (self.look(sysfs, card).driver, self.look(sysfs, card).nets) == (VFIO, ())
        with pytest.raises(Broken, match="makes no virtual functions, or none has it"):
            set_functions(sysfs, cards, card, 1)
        assert give_back(sysfs, card) == before

    def test_a_driver_that_is_not_there(self, sysfs: Sysfs, card: PciAddress) -> None:
        """The one that had it has it again."""
        before = self.look(sysfs, card)
        with pytest.raises(Broken, match="does not go to nonexistent"):
            bind(sysfs, card, "nonexistent")
        after = self.look(sysfs, card)
        assert (after.driver, after.override) == (before.driver, None)

    def test_functions_that_a_program_has(self, sysfs: Sysfs, cards: Cards, card: PciAddress, hold: Hold) -> None:
        """None of them is ripped out."""
        function = set_functions(sysfs, cards, card, 2).functions[1]
        bind(sysfs, function)
        group = self.look(sysfs, function).iommu_group
        assert group is not None
        with hold(group) as holders:
            for count in (0, 1):
                with pytest.raises(Refused, match=f"{function} belongs to "):
                    set_functions(sysfs, cards, card, count, holders)
            with pytest.raises(Refused, match=f"{function} belongs to "):
                give_back(sysfs, function, holders)
        assert set_functions(sysfs, cards, card, 1).count == 1

    def test_a_card_that_is_down_limits_no_rate(self, sysfs: Sysfs, cards: Cards, card: PciAddress) -> None:
        """What was set already is as before, and what to do is told. A card is down when its driver gets it."""
        bind(sysfs, card)
        give_back(sysfs, card)
        function = set_functions(sysfs, cards, card, 1).functions[0]
        before = read_settings(cards, read_inventory(sysfs), function)
        with pytest.raises(Broken, match=r"did not set max rate mbit 50 .*; bring .* up"):
            set_function(cards, read_inventory(sysfs), function, FunctionSettings(vlan=9, max_rate_mbit=50))
        assert read_settings(cards, read_inventory(sysfs), function) == before

    def test_what_a_card_is_told_of_a_function(
        self, sysfs: Sysfs, cards: Cards, card: PciAddress, bring_up: Callable[[str], None]
    ) -> None:
        """Each setting, and none of another function's; it is told again when their number changes."""
        first, second = set_functions(sysfs, cards, card, 2).functions
        bring_up(self.look(sysfs, card).nets[0].name)
        found = read_inventory(sysfs)
        before = read_settings(cards, found, first)
        wanted = FunctionSettings(MAC, 100, trust=True, spoofchk=False, max_rate_mbit=50)
        assert set_function(cards, found, second, wanted) == wanted
        assert read_settings(cards, found, second) == wanted
        assert read_settings(cards, found, first) == before
        third = set_functions(sysfs, cards, card, 3).functions
        assert third[:2] == (first, second)
        found = read_inventory(sysfs)
        assert read_settings(cards, found, second) == wanted  # the kernel has forgotten it
        assert read_settings(cards, found, third[2]) == before
        fresh = FunctionSettings(NO_MAC, 0, trust=False, spoofchk=True, max_rate_mbit=0)
        assert set_function(cards, found, second, fresh) == fresh

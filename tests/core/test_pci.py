"""One PCI address, and every form of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.core.errors import BadInput
from vmferry.core.pci import PciAddress

ADDRESSES = st.builds(
    PciAddress,
    st.one_of(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)


def test_all_forms_of_one_address() -> None:
    """As lspci, sysfs, libvirt's nodedev and a domain's XML write it."""
    assert PciAddress.parse("03:00.1").forms == {
        "lspci": "0000:03:00.1",
        "sysfs": "/sys/bus/pci/devices/0000:03:00.1",
        "nodedev": "pci_0000_03_00_1",
        "xml": "<address domain='0x0000' bus='0x03' slot='0x00' function='0x1'/>",
    }


@given(ADDRESSES)
def test_each_form_is_the_same_address(address: PciAddress) -> None:
    """What is shown can be given back, in every form."""
    for name, text in address.forms.items():
        assert PciAddress.parse(text) == address, name
    assert PciAddress.of_attributes(address.attributes) == address


@pytest.mark.parametrize(
    "text",
    [
        " 0000:03:10.2 ",
        "0000:03:10.2",
        "/sys/bus/pci/devices/0000:03:10.2/",
        "/sys/devices/pci0000:00/0000:00:02.0/0000:03:10.2",
        "PCI_0000_03_10_2".lower(),
        '<address type="pci" domain="0" bus="3" slot="16" function="2"/>',
        "<address bus='0x03' slot='0x10' function='0x2'></address>".replace("></address>", "/>"),
    ],
)
def test_other_spellings(text: str) -> None:
    """Decimal numbers, a domain that is left out, a longer path, spaces around."""
    assert PciAddress.parse(text) == PciAddress(0, 3, 0x10, 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "03:00",
        "03:00.8",
        "03:20.0",
        "0000:03:00.1; rm",
        "pci_0000_03_00",
        "/etc/0000:03:00.1",
        "<address bus='3'/>",
        "<address bus='3' slot='0' function='9'/>",
        "<address bus='0x3g' slot='0' function='0'/>",
        "<domain bus='3' slot='0' function='0'/>",
        "net_eth0_52_54_00_00_00_01",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """The text is told, or the part that no device can have."""
    with pytest.raises(BadInput, match="PCI address"):
        PciAddress.parse(text)


def test_addresses_are_in_order() -> None:
    """Lists are sorted as lspci sorts them."""
    mixed = [PciAddress(0, 3, 0, 1), PciAddress(1, 0, 0, 0), PciAddress(0, 0, 31, 0), PciAddress(0, 3, 0, 0)]
    assert [str(address) for address in sorted(mixed)] == [
        "0000:00:1f.0",
        "0000:03:00.0",
        "0000:03:00.1",
        "0001:00:00.0",
    ]

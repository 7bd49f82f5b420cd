"""What netlink says, in our words; tests/nested/test_sriov.py asks a real card."""

from __future__ import annotations

from typing import Any

import pytest

from vmferry.core.functions import FunctionSettings
from vmferry.hostdev.netlink import Netlink, _settings, _word


class Told(dict[str, Any]):
    """Attributes as pyroute2 has them."""

    def get_attr(self, name: str) -> Any:
        """Return one of them."""
        return self.get(name)


CARD = Told(
    IFLA_VF_MAC={"vf": 1, "mac": "52:54:00:00:00:09:00:00"},
    IFLA_VF_VLAN={"vf": 1, "vlan": 7, "qos": 3},
    IFLA_VF_RATE={"vf": 1, "min_tx_rate": 10, "max_tx_rate": 100},
    IFLA_VF_TRUST={"vf": 1, "trust": 1},
    IFLA_VF_SPOOFCHK={"vf": 1, "spoofchk": 4294967295},
)


def test_what_a_card_says() -> None:
    """A flag that its driver does not know is none."""
    assert _settings(CARD) == FunctionSettings("52:54:00:00:00:09", 7, trust=True, max_rate_mbit=100)


def test_a_number_that_stands_for_none() -> None:
    """ConnectX-3 says VLAN 4095 where the guest sets its own."""
    assert _settings(Told({**CARD, "IFLA_VF_VLAN": {"vf": 1, "vlan": 4095, "qos": 0}})).vlan is None


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("max_rate_mbit", 50, {"rate": {"min_tx_rate": 10, "max_tx_rate": 50}}),
        ("vlan", 9, {"vlan": {"vlan": 9, "qos": 3}}),
        ("vlan", 0, {"vlan": {"vlan": 0, "qos": 0}}),
        ("trust", True, {"trust": 1}),
        ("mac", "52:54:00:00:00:01", {"mac": "52:54:00:00:00:01"}),
    ],
)
def test_what_goes_with_a_setting_stays(name: str, value: str | int, word: dict[str, Any]) -> None:
    """The least rate and the VLAN's priority are nobody's wish here."""
    assert _word(name, value, CARD) == word


def test_a_card_that_is_not_there() -> None:
    """Nothing is known of it, and it is told nothing; the loopback makes no functions."""
    for name in ("nonexistent0", "lo"):
        assert Netlink().read(name, 0) is None
        with pytest.raises(OSError, match=f"interface {name} has no function 0"):
            Netlink().write(name, 0, "vlan", 1)

"""The address of a guest's UDP echo."""

from __future__ import annotations

import pytest

from vmferry.core.guest import echo_address


def test_an_address_and_a_port_are_taken() -> None:
    """A unicast IPv4 address with a port from 1 to 65535."""
    assert echo_address("10.0.0.7:7007") == ("10.0.0.7", 7007)
    assert echo_address("192.0.2.1:65535") == ("192.0.2.1", 65535)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.7",
        ":7007",
        "10.0.0.7:",
        "10.0.0.7:0",
        "10.0.0.7:65536",
        "10.0.0.7:+7",
        "10.0.0.7:\u0667",
        "web-7:7007",
        "--help:7007",
        "10.0.0:7007",
        "[fd00::7]:7007",
        "127.0.0.1:7007",
        "0.0.0.0:7007",
        "224.0.0.1:7007",
        "255.255.255.255:7007",
        " 10.0.0.7:7007",
    ],
)
def test_what_no_guest_can_have_is_refused(text: str) -> None:
    """Names, options, IPv6, loopback, multicast, broadcast and bad ports are refused with what is allowed."""
    with pytest.raises(ValueError, match='"10.0.0.7:7007"'):
        echo_address(text)

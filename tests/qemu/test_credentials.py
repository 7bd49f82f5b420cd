"""What QEMU is told to encrypt with: one name for a key of the move's own, two where certificates are shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.errors import BadInput
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import Certificates, MigrationSetup
from vmferry.qemu.credentials import ADMITS_OBJECT, PSK_OBJECT, X509_OBJECT, names, no_certificates
from vmferry.qemu.migration import check_setup

TOLD = Certificates("PEM of host-a", "O=lab,CN=host-a", "PEM of host-b", "host-b.example.org")
PLAIN = MigrationSetup({"multifd": True, "zero-copy-send": True}, None, Milliseconds(300))
BY_X509 = MigrationSetup(PLAIN.capabilities, None, Milliseconds(300), certificates=TOLD)


@pytest.mark.parametrize(
    ("setup", "incoming", "expected"),
    [
        (None, True, {}),
        (PLAIN, True, {}),
        (MigrationSetup({}, None, Milliseconds(300), psk_key="00"), True, {"tls-creds": PSK_OBJECT}),
        (BY_X509, True, {"tls-creds": X509_OBJECT, "tls-authz": ADMITS_OBJECT}),
        (BY_X509, False, {"tls-creds": X509_OBJECT, "tls-hostname": "host-b.example.org"}),
    ],
    ids=["none", "plain", "key", "destination", "source"],
)
def test_each_side_checks_the_other(setup: MigrationSetup | None, incoming: bool, expected: dict[str, str]) -> None:
    """The destination admits one subject, the source wants one host; a stream in the clear names nothing."""
    assert names(setup, incoming=incoming) == expected


def test_certificates_are_encryption_too() -> None:
    """What excludes TLS is refused beside them as beside a key."""
    known = frozenset({"multifd", "zero-copy-send"})
    check_setup(PLAIN, known, (10, 0, 2))
    with pytest.raises(BadInput, match="zero-copy-send and tls exclude"):
        check_setup(BY_X509, known, (10, 0, 2))


def test_two_ways_to_encrypt_are_refused() -> None:
    """A peer that names both is told so, before QEMU is given either."""
    with pytest.raises(BadInput, match="by a key and by certificates"):
        check_setup(replace(BY_X509, capabilities={}, psk_key="00"), frozenset(), (10, 0, 2))


def test_a_host_without_certificates_says_so() -> None:
    """Whoever asks all the same, as a peer may, is told what to do."""
    with pytest.raises(BadInput, match="no certificates") as told:
        no_certificates(TOLD, incoming=True)
    assert "tls_dir" in str(told.value)

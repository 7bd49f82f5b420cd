"""Streams by certificates: both hosts must be able to show one, and each must be believed."""

from __future__ import annotations

import dataclasses

import pytest
from tests.core_checks.conftest import with_qemu

from vmferry.core.capabilities import Encryption, StreamWish
from vmferry.core.checks import Case
from vmferry.core.checks.certificates import OBJECTS, check_certificates
from vmferry.core.errors import Blocker
from vmferry.core.host import StreamCertificates

GOOD = StreamCertificates("PEM", "PEM", "host", "CN=host")
EXPIRED = Blocker("stream.certificates-unusable", "it has expired", "renew it")
DISTRUSTED = Blocker("stream.certificate-distrusted", "another CA", "take ours")
MISSING, NO_QEMU = "stream.certificates-missing", "stream.qemu-without-certificates"
BY_X509 = StreamWish(encryption=Encryption.X509)


@pytest.fixture
def able(case: Case) -> Case:
    """Two hosts with certificates, and a QEMU that takes them."""
    source, destination = (
        dataclasses.replace(with_qemu(host, objects=OBJECTS), certificates=GOOD)
        for host in (case.source, case.destination)
    )
    return dataclasses.replace(case, source=source, destination=destination, stream=BY_X509)


def codes(case: Case) -> list[str]:
    """Return what blocks."""
    return [blocker.code for blocker in check_certificates(case)]


def test_good_ones_block_nothing(able: Case) -> None:
    """Both hosts are ready."""
    assert codes(able) == []


@pytest.mark.parametrize("side", ["source", "destination"])
def test_each_host_is_asked(able: Case, side: str) -> None:
    """What one of them lacks is told of that one, each with its fix."""
    host = getattr(able, side)
    spoilt = {
        MISSING: dataclasses.replace(host, certificates=None),
        NO_QEMU: with_qemu(host, objects=OBJECTS - {"authz-simple"}),
        EXPIRED.code: dataclasses.replace(host, certificates=dataclasses.replace(GOOD, problems=(EXPIRED,))),
    }
    for code, changed in spoilt.items():
        (blocker,) = check_certificates(dataclasses.replace(able, **{side: changed}))
        assert blocker.code == code
        assert blocker is EXPIRED or (host.name in blocker.what and "--encryption x509" in blocker.fix)


def test_everything_is_told_at_once(case: Case) -> None:
    """Two QEMUs without it, two hosts without certificates: four."""
    asked = dataclasses.replace(case, stream=BY_X509, distrusted=(DISTRUSTED,))
    assert codes(asked) == [NO_QEMU, MISSING, NO_QEMU, MISSING, DISTRUSTED.code]


@pytest.mark.parametrize(
    "stream",
    [StreamWish(), dataclasses.replace(BY_X509, encrypted=False), dataclasses.replace(BY_X509, pipeline="age")],
    ids=["key", "plain", "pipeline"],
)
def test_nothing_is_asked_where_none_is_used(case: Case, stream: StreamWish) -> None:
    """Hosts without certificates are good for every other stream."""
    assert codes(dataclasses.replace(case, stream=stream, distrusted=(DISTRUSTED,))) == []

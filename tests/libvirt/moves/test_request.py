"""What libvirt is told for what is asked of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.capabilities import Compression, Encryption, StreamWish, Transport
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.libvirt.moves.request import Wish, make_request, mib_per_second
from vmferry.libvirt.moves.terms import version_of

OLD, NEW = (9, 0, 0), (11, 3, 0)
PLAIN = StreamWish(encrypted=False)
CERTIFICATES = StreamWish(encryption=Encryption.X509)


def codes(wish: Wish, version: tuple[int, int, int] = NEW) -> list[str]:
    """Return what keeps a move from starting."""
    return [blocker.code for blocker in make_request(wish, version).blockers]


def test_the_least() -> None:
    """A transient domain, nothing asked for: it is live, by the daemons themselves, and nobody changes it meanwhile."""
    request = make_request(Wish(PLAIN), OLD)
    assert request.flags == ("LIVE", "PEER2PEER", "CHANGE_PROTECTION", "ABORT_ON_ERROR")
    assert request.parameters == {}
    assert (request.left_out, request.blockers) == ((), ())


def test_everything_at_once() -> None:
    """Each wish has its flag or its parameter."""
    wish = Wish(
        StreamWish(channels=4, compression=Compression.ZSTD, encryption=Encryption.X509),
        bandwidth=BytesPerSecond(100 * MIB),
        postcopy=True,
        auto_converge=True,
        disks=("vda", "vdb"),
        is_persistent=True,
        destination_xml="<domain/>",
        stream_uri="tcp://10.77.0.2",
    )
    request = make_request(wish, NEW)
    assert request.blockers == ()
    assert {*request.flags} >= {"PERSIST_DEST", "UNDEFINE_SOURCE", "TLS", "POSTCOPY", "AUTO_CONVERGE", "PARALLEL"}
    assert {*request.flags} >= {"NON_SHARED_DISK", "COMPRESSED"}
    assert request.parameters == {
        "migrate_disks": ("vda", "vdb"),
        "bandwidth": 100,
        "bandwidth.postcopy": 100,
        "destination_xml": "<domain/>",
        "migrate_uri": "tcp://10.77.0.2",
        "parallel.connections": 4,
        "compression": "zstd",
    }


def test_a_daemon_that_is_too_old() -> None:
    """What changes the move is a blocker with both versions; what only helps is left out and told."""
    wish = Wish(StreamWish(channels=4, compression=Compression.ZSTD, encrypted=False))
    (blocker,) = make_request(wish, OLD).blockers
    assert blocker.code == "libvirt.too-old"
    assert "9.0.0" in blocker.what
    assert "9.4.0" in blocker.fix
    ancient = make_request(Wish(PLAIN, auto_converge=True), (1, 0, 0))
    assert ancient.blockers == ()
    assert [text for text in ancient.left_out if "AUTO_CONVERGE" in text]
    assert "AUTO_CONVERGE" not in ancient.flags


@pytest.mark.parametrize("link", [Transport.FD, Transport.UNIX, Transport.RDMA])
def test_what_libvirt_has_no_words_for(link: Transport) -> None:
    """All of it is told at once."""
    wish = Wish(StreamWish(link, compression=Compression.QPL))
    expected = ["libvirt.link", "libvirt.encryption", "libvirt.compression"]
    assert [code for code in codes(wish) if code != "libvirt.too-old"] == expected


def test_it_encrypts_by_certificates_or_not_at_all() -> None:
    """A key of the move's own is none of libvirt's words; nothing is sent in the clear that was not to be."""
    assert codes(Wish(StreamWish())) == ["libvirt.encryption"]
    assert codes(Wish(CERTIFICATES)) == []
    assert "TLS" in make_request(Wish(CERTIFICATES), OLD).flags
    assert codes(Wish(replace(PLAIN, pipeline="zstd"))) == ["libvirt.link"]


def test_differences_need_no_channels() -> None:
    """Xbzrle is what libvirt has known for long."""
    request = make_request(Wish(replace(PLAIN, compression=Compression.XBZRLE)), OLD)
    assert request.blockers == ()
    assert "PARALLEL" not in request.flags
    assert request.parameters["compression"] == "xbzrle"


@pytest.mark.parametrize(("bandwidth", "mib"), [(1, 1), (MIB, 1), (2 * MIB - 1, 1), (119 * MIB, 119)])
def test_a_limit_is_never_exceeded_and_never_lost(bandwidth: int, mib: int) -> None:
    """Libvirt counts in MiB/s, and takes 0 for no limit."""
    assert mib_per_second(BytesPerSecond(bandwidth)) == mib


def test_versions_as_libvirt_packs_them() -> None:
    """One number holds all three."""
    assert version_of(9_000_000) == (9, 0, 0)
    assert version_of(11_003_002) == (11, 3, 2)

"""What libvirt is told for what is asked of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.capabilities import Compression, Encryption, StreamWish, Transport
from vmferry.core.errors import BadInput
from vmferry.core.units import MIB, BytesPerSecond, Percent
from vmferry.libvirt.moves.request import Wish, make_request, mib_per_second
from vmferry.libvirt.moves.terms import version_of
from vmferry.libvirt.moves.tuning import parse_tuning

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


def test_the_direct_flow_has_no_peers() -> None:
    """Our process stands between the daemons only where it was asked to."""
    assert "PEER2PEER" in make_request(Wish(PLAIN), OLD).flags
    assert "PEER2PEER" not in make_request(Wish(PLAIN, tuning=parse_tuning(["flow=direct"])), OLD).flags


def test_storage_is_only_taken_for_shared_where_that_was_said() -> None:
    """Libvirt refuses what it does not know; nobody else may say that it need not."""
    assert "UNSAFE" in make_request(Wish(PLAIN, tuning=parse_tuning(["unsafe=yes"])), OLD).flags
    assert "UNSAFE" not in make_request(Wish(PLAIN), OLD).flags


def test_a_domain_may_stand_still_there() -> None:
    """It goes on when somebody has looked at it."""
    assert "PAUSED" in make_request(Wish(PLAIN, tuning=parse_tuning(["paused=yes"])), OLD).flags
    assert "PAUSED" not in make_request(Wish(PLAIN, tuning=parse_tuning(["paused=no"])), OLD).flags


def test_a_bounded_brake_begins_high_and_goes_on_slowly() -> None:
    """What libvirt cannot change later is said at the start; an operator's own word counts more."""
    request = make_request(Wish(PLAIN, auto_converge=True, brake=Percent(86)), OLD)
    assert request.parameters["auto_converge.initial"] == 86
    assert request.parameters["auto_converge.increment"] == 1
    asked = Wish(PLAIN, auto_converge=True, brake=Percent(86), tuning=parse_tuning(["auto_converge.initial=30"]))
    assert make_request(asked, OLD).parameters["auto_converge.initial"] == 30
    assert "auto_converge.initial" not in make_request(Wish(PLAIN, auto_converge=True), OLD).parameters


def test_a_domain_that_is_held_at_its_arrival_stands_still_there() -> None:
    """Whoever has it moved lets it run; with post-copy it would stand until the last page is there."""
    assert "PAUSED" in make_request(Wish(PLAIN, held=True), OLD).flags
    asked = Wish(PLAIN, held=True, tuning=parse_tuning(["held=yes"]))
    assert make_request(asked, OLD).blockers == ()
    (blocker,) = make_request(replace(asked, held=False, postcopy=True), OLD).blockers
    assert (blocker.code, "post-copy" in blocker.what) == ("libvirt.held", True)
    both = Wish(PLAIN, tuning=parse_tuning(["held=yes", "paused=yes"]))
    assert [blocker.code for blocker in make_request(both, OLD).blockers] == ["libvirt.idle"]


@pytest.mark.parametrize(
    ("is_persistent", "asked", "flags"),
    [
        (True, [], {"PERSIST_DEST", "UNDEFINE_SOURCE"}),
        (True, ["undefine=no"], {"PERSIST_DEST"}),
        (True, ["define=no"], {"UNDEFINE_SOURCE"}),
        (True, ["define=no", "undefine=no"], set()),
        (False, [], set()),
        (False, ["define=yes"], {"PERSIST_DEST"}),
    ],
)
def test_where_a_domain_is_defined(is_persistent: bool, asked: list[str], flags: set[str]) -> None:
    """As it was, or as asked: at the source, at the destination, at both or at neither."""
    wish = Wish(PLAIN, is_persistent=is_persistent, persistent_xml="<domain/>", tuning=parse_tuning(asked))
    request = make_request(wish, OLD)
    assert {*request.flags} & {"PERSIST_DEST", "UNDEFINE_SOURCE"} == flags
    assert ("persistent_xml" in request.parameters) == ("PERSIST_DEST" in flags)
    assert request.blockers == ()


#: words of libvirt's -> the wish that they are of
GOES_WITH = {
    "disks_port=49300": Wish(PLAIN, disks=("vda",)),
    "disks_uri=tcp://10.0.0.2:49300": Wish(PLAIN, disks=("vda",)),
    "tls.destination=host-b.storage": Wish(CERTIFICATES),
    "bandwidth.postcopy=50": Wish(PLAIN, postcopy=True),
    "compression.xbzrle.cache=1048576": Wish(replace(PLAIN, compression=Compression.XBZRLE)),
    "compression.zlib.level=3": Wish(replace(PLAIN, compression=Compression.ZLIB)),
    "compression.zstd.level=3": Wish(replace(PLAIN, compression=Compression.ZSTD)),
    "auto_converge.initial=20": Wish(PLAIN, auto_converge=True),
    "auto_converge.increment=5": Wish(PLAIN, auto_converge=True),
}


@pytest.mark.parametrize("word", GOES_WITH)
def test_words_of_libvirts_own(word: str) -> None:
    """Each is a parameter of the move that it goes with, and told to do nothing in any other one."""
    name, _, value = word.partition("=")
    request = make_request(replace(GOES_WITH[word], tuning=parse_tuning([word])), NEW)
    assert request.blockers == ()
    assert str(request.parameters[name]) == value
    idle = Wish(PLAIN, tuning=parse_tuning([word]))
    (blocker,) = make_request(idle, NEW).blockers
    assert blocker.code == "libvirt.idle"
    assert name in blocker.what


def test_a_limit_of_postcopy_takes_the_place_of_the_streams() -> None:
    """Without it the pages that follow have the stream's own limit."""
    wish = Wish(PLAIN, bandwidth=BytesPerSecond(100 * MIB), postcopy=True)
    assert make_request(wish, NEW).parameters["bandwidth.postcopy"] == 100
    tuned = replace(wish, tuning=parse_tuning(["bandwidth.postcopy=7", "listen_address=0.0.0.0"]))
    assert make_request(tuned, NEW).parameters["bandwidth.postcopy"] == 7
    assert make_request(tuned, NEW).parameters["listen_address"] == "0.0.0.0"


def test_a_word_that_a_daemon_is_too_old_for() -> None:
    """It was asked for, so it is not left out in silence."""
    wish = Wish(CERTIFICATES, tuning=parse_tuning(["tls.destination=host-b"]))
    (blocker,) = make_request(wish, (5, 0, 0)).blockers
    assert (blocker.code, "6.0.0" in blocker.what) == ("libvirt.too-old", True)


def test_a_transient_domain_has_nothing_to_undefine() -> None:
    """Whoever asks for it takes it for another one."""
    assert codes(Wish(PLAIN, tuning=parse_tuning(["undefine=yes"]))) == ["libvirt.idle"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["colour=red"], "nothing that can be asked for"),
        (["flow"], "NAME=VALUE"),
        (["flow=sideways"], "p2p or direct"),
        (["disks_port=0"], "1 to 65535"),
        (["disks_port=1e3"], "1 to 65535"),
        (["listen_address=-x y"], "an address"),
        (["disks_uri=rdma://10.0.0.2"], "tcp://ADDRESS"),
        (["define=yes", "define=no"], "twice"),
    ],
)
def test_what_is_no_word_of_libvirts(given: list[str], told: str) -> None:
    """The error says what can be written there."""
    with pytest.raises(BadInput) as caught:
        parse_tuning(given)
    assert told in str(caught.value)

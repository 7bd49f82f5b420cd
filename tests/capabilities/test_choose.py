"""What is chosen for pairs of QEMUs, what is left out and why, and what blocks."""

from __future__ import annotations

import dataclasses

import pytest
from tests.capabilities.conftest import EVERYTHING, make_qemu, qemu_7_2, qemu_10_0, qemu_10_2

from vmferry.core.capabilities import (
    DEFAULT_CHANNELS,
    HANDOVER,
    CapabilitySet,
    Compression,
    Level,
    Resource,
    StreamWish,
    Transport,
    Wanted,
    Wish,
    choose,
)
from vmferry.core.errors import BadInput
from vmferry.core.host import QemuFacts

R, P = Level.REQUIRED, Level.PREFERRED


def ask(
    *wanted: Wanted,
    source: QemuFacts | None = None,
    destination: QemuFacts | None = None,
    offered: frozenset[Resource] = EVERYTHING,
    transport: Transport = Transport.TCP,
    encrypted: bool = True,
) -> CapabilitySet:
    """Choose between two QEMUs, 10.0 unless said otherwise."""
    wish = Wish(wanted, transport, encrypted)
    return choose(wish, source or qemu_10_0(), destination or qemu_10_0(), offered)


def names(found: CapabilitySet) -> set[str]:
    """Return the names of what was chosen."""
    return {one.name for one in found.chosen}


def why(found: CapabilitySet, name: str) -> str:
    """Return why something was left out."""
    return next(one.why for one in found.left_out if one.wanted.name == name)


def test_the_handovers_own_set() -> None:
    """7.2 and 10.0 both have what every hand-over stands on, encrypted over TCP."""
    found = ask(*HANDOVER, source=qemu_7_2())
    assert found.blockers == ()
    assert found.left_out == ()
    assert set(found.capabilities) == {"events", "return-path", "pause-before-switchover", "late-block-activate"}
    assert all(found.capabilities.values())


def test_post_copy_comes_before_channels() -> None:
    """Up to 10.0 the two exclude each other: what makes the guest arrive stays, what makes it fast is told why not."""
    found = ask(Wanted("multifd"), Wanted("multifd-channels", P, 4), Wanted("postcopy-ram"))
    assert names(found) == {"postcopy-ram"}
    assert "postcopy-ram excludes multifd" in why(found, "multifd")
    assert "multifd-channels needs multifd, which is left out" in why(found, "multifd-channels")
    assert found.parameters["multifd-channels"] == 2
    assert found.blockers == ()


@pytest.mark.parametrize(("source", "destination", "both"), [(0, 1, False), (1, 0, False), (1, 1, True)])
def test_from_10_1_they_go_together_when_both_sides_can(source: int, destination: int, *, both: bool) -> None:
    """The older of the two QEMUs decides."""
    found = ask(
        Wanted("multifd"),
        Wanted("postcopy-ram"),
        source=make_qemu(10, source),
        destination=make_qemu(10, destination),
    )
    assert ("multifd" in names(found)) is both
    assert names(found) >= {"postcopy-ram"}


def test_what_is_required_comes_before_what_is_preferred() -> None:
    """Required channels push preferred post-copy out, although post-copy stands first in the table."""
    found = ask(Wanted("postcopy-ram"), Wanted("multifd", R))
    assert names(found) == {"multifd"}
    assert "multifd excludes postcopy-ram" in why(found, "postcopy-ram")
    assert found.blockers == ()


def test_two_required_that_exclude_each_other_block() -> None:
    """Nobody guesses which of two requirements was meant."""
    found = ask(Wanted("postcopy-ram", R), Wanted("multifd", R))
    (blocker,) = found.blockers
    assert blocker.code == "stream.required"
    assert "multifd is required and cannot be had: postcopy-ram excludes multifd" in blocker.what
    assert "QEMU 10.0.0 at the source: refused" in blocker.what


def test_what_7_2_accepts_and_fails_at_is_refused() -> None:
    """The reason says that QEMU itself would have accepted it."""
    found = ask(Wanted("postcopy-ram", R), Wanted("multifd"), source=qemu_7_2(), destination=qemu_7_2())
    assert "QEMU 7.2.0 at the source: accepted, fails later" in why(found, "multifd")


def test_a_required_one_takes_what_it_needs_along() -> None:
    """What a required wish needs is granted before other preferences, even if it is only preferred itself."""
    found = ask(Wanted("postcopy-ram"), Wanted("zero-copy-send", R), Wanted("multifd"), encrypted=False)
    assert names(found) == {"multifd", "zero-copy-send"}
    assert found.blockers == ()


def test_nothing_is_added_that_nobody_asked_for() -> None:
    """A required mode of post-copy without post-copy blocks and says what it needs."""
    (blocker,) = ask(Wanted("postcopy-preempt", R)).blockers
    assert "needs postcopy-ram, which was not asked for" in blocker.what
    assert "use postcopy-ram" in blocker.fix


def test_the_qemu_that_lacks_it_is_named() -> None:
    """A user sees which of the two has to be updated."""
    found = ask(Wanted("switchover-ack"), *HANDOVER, destination=qemu_7_2())
    assert why(found, "switchover-ack") == (
        "QEMU 7.2.0 at the destination has no capability switchover-ack (since 8.1)"
    )


def test_what_no_host_offers_is_left_out() -> None:
    """What nobody looked at is not there, and the sides that need it are told; what was found is enough."""
    nothing = ask(Wanted("postcopy-ram", R), Wanted("multifd"), offered=frozenset())
    assert names(nothing) == {"multifd"}
    assert "userfaultfd for QEMU's user at the destination" in nothing.blockers[0].what
    enough = frozenset({Resource.USERFAULTFD})
    assert names(ask(Wanted("postcopy-ram", R), offered=enough)) == {"postcopy-ram"}


def test_encryption_is_never_dropped() -> None:
    """Zero copy gives way to encryption; a transport that cannot be encrypted blocks."""
    found = ask(Wanted("multifd"), Wanted("zero-copy-send"))
    assert "tls excludes zero-copy-send" in why(found, "zero-copy-send")
    rdma = ask(transport=Transport.RDMA)
    assert [blocker.code for blocker in rdma.blockers] == ["stream.transport"]
    assert ask(transport=Transport.RDMA, encrypted=False).blockers == ()


@pytest.mark.parametrize("transport", [Transport.PIPE, Transport.FILE])
def test_a_way_in_one_direction_carries_no_answers(transport: Transport) -> None:
    """The hand-over's own set blocks there, and says why."""
    found = ask(*HANDOVER, transport=transport, encrypted=False)
    assert ["return-path" in blocker.what for blocker in found.blockers] == [True]


def test_exec_is_the_agents_work() -> None:
    """QEMU never starts a command; nothing is chosen for a way that does not exist."""
    found = ask(*HANDOVER, transport=Transport.EXEC, encrypted=False)
    assert found.chosen == ()
    assert "have the agent run the command" in found.blockers[0].what


def test_compression_is_a_value() -> None:
    """One of two compressions is taken, with its level; the other is told why not."""
    found = ask(Wanted("multifd"), Wanted("multifd-zlib"), Wanted("multifd-zstd"), Wanted("multifd-zstd-level", P, 3))
    assert found.parameters["multifd-compression"] == "zstd"
    assert found.parameters["multifd-zstd-level"] == 3
    assert "one parameter holds one of them" in why(found, "multifd-zlib")


def test_a_compression_is_there_where_both_were_built_with_it() -> None:
    """The version says nothing of it, and neither does the parameter that would hold it."""
    bare = dataclasses.replace(qemu_10_0(), compressions=frozenset({"zlib"}))
    found = ask(Wanted("multifd", R), Wanted("multifd-zstd", R), destination=bare)
    assert "QEMU 10.0.0 at the destination has no compression multifd-zstd" in found.blockers[0].what
    assert names(ask(Wanted("multifd", R), Wanted("multifd-zlib", R), destination=bare)) == {"multifd", "multifd-zlib"}


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        (StreamWish(), {}),
        (StreamWish(channels=1), {}),
        (StreamWish(channels=4), {"multifd": None, "multifd-channels": 4}),
        (StreamWish(compression=Compression.XBZRLE), {"xbzrle": None}),
        (
            StreamWish(compression=Compression.ZSTD),
            {"multifd": None, "multifd-channels": DEFAULT_CHANNELS, "multifd-zstd": None},
        ),
        (
            StreamWish(channels=1, compression=Compression.ZLIB),
            {"multifd": None, "multifd-channels": 1, "multifd-zlib": None},
        ),
    ],
)
def test_what_a_person_asks_of_a_stream_is_required(wish: StreamWish, wanted: dict[str, int | None]) -> None:
    """Channels only where there is more than one or a compression that needs them; nothing else comes along."""
    assert {one.name: one.value for one in wish.wanted} == wanted
    assert all(one.level is R for one in wish.wanted)
    assert ask(*HANDOVER, *wish.wanted).blockers == ()


def test_what_does_not_go_together_on_one_stream_is_told() -> None:
    """Channels that do not compress by differences, and a way with one channel."""
    both = StreamWish(channels=2, compression=Compression.XBZRLE)
    assert "multifd excludes xbzrle" in ask(*HANDOVER, *both.wanted).blockers[0].what
    over = ask(*HANDOVER, *StreamWish(channels=2, compression=Compression.ZSTD).wanted, transport=Transport.FD)
    (only,) = over.blockers  # channels and zstd need multifd, which has the reason
    assert "fd excludes multifd" in only.what
    assert {one.wanted.name for one in over.left_out} == {"multifd", "multifd-channels", "multifd-zstd"}


def test_an_earlier_attempt_leaves_nothing_behind() -> None:
    """Without a wish every parameter of the table that both have is QEMU's default, and compression is off."""
    found = ask(source=qemu_7_2())
    assert found.parameters["multifd-compression"] == "none"
    assert found.parameters["max-cpu-throttle"] == 99
    assert "zero-page-detection" not in found.parameters  # 7.2 does not know it


def test_channels_to_a_file_need_places() -> None:
    """Channels to a file work when each page has its own place, and only then."""
    plain = ask(Wanted("multifd"), transport=Transport.FILE, encrypted=False)
    assert names(plain) == set()
    mapped = ask(Wanted("multifd"), Wanted("mapped-ram"), transport=Transport.FILE, encrypted=False)
    assert names(mapped) == {"multifd", "mapped-ram"}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted("multifd-channels", P, 0), "it must be 1 to 255"),
        (Wanted("multifd-channels"), "is None"),
        (Wanted("multifd-channels", P, True), "is True"),
        (Wanted("xbzrle-cache-size", P, 5000), "a power of two"),
        (Wanted("zero-page-detection", P, "magic"), "none, legacy, multifd"),
        (Wanted("auto-converge", P, 1), "takes no value"),
        (Wanted("max-cpu-throttle", P, 10), "below cpu-throttle-initial, 20 %"),
        (Wanted("release-ram"), "never used: a broken post-copy cannot be resumed"),
        (Wanted("tcp"), "nothing that can be wished"),
        (Wanted("teleport"), "nothing that can be wished"),
    ],
)
def test_bad_wishes_are_told(wanted: Wanted, said: str) -> None:
    """A value that QEMU would refuse, or a name that is no wish, is left out with its reason."""
    users = [Wanted(name) for name in ("multifd", "xbzrle", "auto-converge") if name != wanted.name]
    assert said in why(ask(wanted, *users), wanted.name)


def test_twice_is_bad_input() -> None:
    """Two levels for one thing cannot both be meant."""
    with pytest.raises(BadInput, match="multifd is wanted twice"):
        Wish((Wanted("multifd"), Wanted("multifd", R)))


def test_10_2_takes_the_fast_set() -> None:
    """With two QEMUs of 10.2 everything that was asked for is in the set."""
    wanted = [Wanted(name) for name in ("postcopy-ram", "postcopy-preempt", "multifd", "multifd-zstd")]
    found = ask(*HANDOVER, *wanted, source=qemu_10_2(), destination=qemu_10_2())
    assert found.left_out == ()

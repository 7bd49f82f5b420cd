"""Streams on real QEMUs: what the table calls failing fails, what it calls refused is refused, what it allows works."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.capabilities.bare_qemu import (
    ANSWER_LIMIT_S,
    OVER,
    PAUSED_GUEST,
    WRITER,
    WRITTEN_AT,
    BareQemu,
    Dead,
    encrypt,
    set_up,
    two,
    ways,
)
from tests.qemus import find_or_skip

from vmferry.core.capabilities import (
    BY_NAME,
    EXCLUSIONS,
    REQUIREMENTS,
    Exclusion,
    Kind,
    Level,
    Resource,
    Transport,
    Verdict,
    Wanted,
    Wish,
    choose,
)
from vmferry.core.host import QemuFacts
from vmferry.lab.toolchain import QemuBinary

pytestmark = pytest.mark.real

#: A stream of this guest takes a tenth of a second; one that must not arrive, and has not after so long, hangs.
_HANGS_AFTER_S = 3.0
_COMPLETED = "completed"
_TRIED = ("fd", "pipe", "exec", "file", "unix")


def stream(
    binary: QemuBinary, on: tuple[str, ...], transport: str, directory: Path, limit_s: float = ANSWER_LIMIT_S
) -> tuple[str, str]:
    """Move a paused guest; return who refused it ("" if nobody did) and what became of it at the destination."""
    with two(binary, *PAUSED_GUEST) as sides:
        refusal = set_up(sides, [name for name in on if name != "tls"])
        refusal = refusal or (encrypt(sides, directory) if "tls" in on else None)
        if refusal is not None:
            return refusal, ""
        source, destination = sides
        out, into, listen_first = ways(transport, sides, directory)
        refusal = destination.ask("migrate-incoming", uri=into) if listen_first else None
        source.limit_s = limit_s
        try:
            refusal = refusal or source.ask("migrate", uri=out)
        except TimeoutError:
            return "", "QEMU itself hangs"
        if refusal is not None:
            return refusal, ""
        return "", arrive(source, destination, None if listen_first else into, limit_s)


def arrive(source: BareQemu, destination: BareQemu, into: str | None, limit_s: float) -> str:
    """Wait for both ends; return how it ended."""
    try:
        seen = source.wait(*OVER, "pre-switchover", limit_s=limit_s)
        if seen == "pre-switchover":
            source.ask("migrate-continue", state="pre-switchover")
            seen = source.wait(*OVER, limit_s=limit_s)
        if seen != _COMPLETED:
            return f"the source {seen or 'hangs'}"
        if into is not None and (refusal := destination.ask("migrate-incoming", uri=into)):
            return refusal
        return destination.wait(*OVER, limit_s=limit_s) or "the destination hangs"
    except Dead as dead:
        return f"died: {dead}"


def closed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return these capabilities with what they need."""
    needs = {rule.needs for rule in REQUIREMENTS if rule.user in names and BY_NAME[rule.needs].kind is Kind.CAPABILITY}
    return names if needs <= set(names) else closed((*names, *sorted(needs - set(names))))


def way_rules() -> list[Exclusion]:
    """Return the rules between something wished and a way, as far as this machine has the way."""
    rules = [rule for rule in EXCLUSIONS if rule.other in _TRIED]
    return [rule for rule in rules if rule.one == "tls" or BY_NAME[rule.one].kind is Kind.CAPABILITY]


@pytest.mark.parametrize("transport", ["tcp", *_TRIED])
def test_each_way_works(binary: QemuBinary, transport: str, tmp_path: Path) -> None:
    """Without any capability every way that this version has moves the guest: the control of the test below."""
    if binary.version < BY_NAME[transport].since:
        refusal, _ = stream(binary, (), transport, tmp_path)
        assert "valid migration protocol" in refusal
    else:
        assert stream(binary, (), transport, tmp_path) == ("", _COMPLETED)


@pytest.mark.parametrize("rule", way_rules(), ids=lambda rule: f"{rule.one}-{rule.other}")
def test_ways_that_exclude(binary: QemuBinary, rule: Exclusion, tmp_path: Path) -> None:
    """What the table says of a way is what happens: refused before the start, or accepted and then it fails."""
    if binary.version < BY_NAME[rule.other].since:
        pytest.skip(f"this QEMU has no {rule.other}")
    refusal, end = stream(binary, closed((rule.one,)), rule.other, tmp_path, _HANGS_AFTER_S)
    assert end != _COMPLETED
    assert bool(refusal) is (rule.verdict(binary.version) is Verdict.REFUSED), (refusal, end)


def test_mapped_ram_excludes(tmp_path: Path) -> None:
    """10.0 writes places to a file, through several channels too, but neither encrypted nor compressed."""
    binary = find_or_skip((10, 0))
    assert stream(binary, ("mapped-ram", "multifd"), "file", tmp_path) == ("", _COMPLETED)
    refusal, _ = stream(binary, ("mapped-ram", "tls"), "file", tmp_path)
    assert "TLS with mapped-ram" in refusal
    with two(binary, *PAUSED_GUEST) as sides:
        assert set_up(sides, ("mapped-ram", "multifd"), **{"multifd-compression": "zstd"}) is None
        assert "compression with mapped-ram" in str(sides[0].ask("migrate", uri=f"file:{tmp_path}/other"))


def test_7_2_accepts_channels_with_post_copy_and_the_destination_dies() -> None:
    """The table's reason to be: 7.2 says yes to both, the source completes, and the only copy of the guest is dead."""
    binary = find_or_skip((7, 2))
    slow, fast = {"max-bandwidth": 64 * 1024}, {"max-bandwidth": 1 << 30}
    with two(binary, *PAUSED_GUEST) as sides:
        source, destination = sides
        assert set_up(sides, ("multifd", "postcopy-ram"), **slow) is None
        out, into, _ = ways("tcp", sides, Path())
        assert destination.ask("migrate-incoming", uri=into) is None
        assert source.ask("migrate", uri=out) is None
        assert source.wait("active") == "active"
        assert source.ask("migrate-start-postcopy") is None
        assert source.ask("migrate-set-parameters", **fast) is None
        assert source.wait(*OVER) == _COMPLETED
        assert "QLIST_EMPTY" in destination.wait_dead()


@pytest.mark.parametrize(("on", "used"), [(("xbzrle",), True), (("xbzrle", "multifd"), False)])
def test_7_2_accepts_channels_with_xbzrle_and_ignores_it(on: tuple[str, ...], *, used: bool, tmp_path: Path) -> None:
    """Pages sent again never reach xbzrle's cache when there are channels; without channels they do."""
    (tmp_path / "disk").write_bytes(WRITER)
    disk = ("-drive", f"file={tmp_path}/disk,format=raw,if=ide")
    with two(find_or_skip((7, 2)), "-machine", "pc,accel=tcg", "-m", "32", *disk, "-snapshot") as sides:
        source, destination = sides
        assert set_up(sides, on, **{"max-bandwidth": 1 << 20, "downtime-limit": 1}) is None
        while source.peek(WRITTEN_AT) == 0:
            pass  # the firmware is still at work
        out, into, _ = ways("tcp", sides, tmp_path)
        assert destination.ask("migrate-incoming", uri=into) is None
        assert source.ask("migrate", uri=out) is None
        info = source.query("query-migrate")
        while info["status"] in {"setup", "active"} and info.get("ram", {}).get("dirty-sync-count", 0) < 8:
            info = source.query("query-migrate")
        assert info["ram"]["dirty-sync-count"] > 2, info  # the first round never uses the cache
        cache = info["xbzrle-cache"]
        assert bool(cache["pages"] + cache["cache-miss"]) is used, cache


@pytest.mark.slow
def test_every_allowed_pair_arrives(binary: QemuBinary, tmp_path: Path) -> None:
    """Whatever two capabilities our table lets go together over TCP, a guest arrives with them."""
    with two(binary, "-machine", "none") as sides:
        source = sides[0]
        facts = QemuFacts(
            binary.version,
            frozenset(),
            frozenset(),
            frozenset(source.capabilities()),
            frozenset(source.query("query-migrate-parameters")),
            frozenset(),
        )
    # This machine has no RDMA device.
    here = frozenset({Resource.USERFAULTFD, Resource.LOCKED_MEMORY, Resource.WRITE_PROTECTION})
    arrived = 0
    for pair in itertools.combinations(sorted(facts.capabilities - {"background-snapshot"}), 2):
        on = closed(pair)
        wish = Wish(tuple(Wanted(name, Level.REQUIRED) for name in on), Transport.TCP, encrypted=False)
        if choose(wish, facts, facts, here).blockers:
            continue
        assert stream(binary, on, "tcp", tmp_path) == ("", _COMPLETED), on
        arrived += 1
    assert arrived > 30

"""Files with a guest in them: their header, their names, and what a crash or a stranger may do to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.core.guest import Acceleration, BiosBoot, FrozenGuest, GuestSpec
from vmferry.core.ids import Epoch, GuestName, GuestUuid, HostName
from vmferry.core.saved import SavedGuest
from vmferry.core.units import MIB, Bytes
from vmferry.links.state_file import HEADER_BYTES, MAGIC, GuestStateFiles, dump_header, load_header

GUEST = FrozenGuest(
    GuestSpec(GuestName("web-7"), Bytes(64 * MIB), boot=BiosBoot()),
    GuestUuid("6f1b9e1a-2f2e-4f0e-9b2e-0d6b6a3c1d11"),
    Acceleration.TCG,
    "qemu64-v1",
    "pc-q35-7.2",
    (),
    (),
)
SAVED = SavedGuest(
    GUEST,
    Epoch(2),
    running=True,
    host=HostName("host-a"),
    qemu=(10, 0, 2),
    mapped=True,
    saved_at=1.5,
    state_bytes=Bytes(0),
    sha256="",
)
STATE = b"state of a guest " * 1000


@pytest.fixture
def files() -> GuestStateFiles:
    """Files anywhere."""
    return GuestStateFiles(lambda _: None)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where nothing is yet."""
    return str(tmp_path / "web-7.guest")


async def save(files: GuestStateFiles, path: str, mark: str = "s1") -> SavedGuest:
    """Write a guest into a file as a QEMU would, and give it its name."""
    sealed, digest = await write(files, path, mark)
    await files.publish(path, mark, digest)
    return sealed


async def write(files: GuestStateFiles, path: str, mark: str = "s1") -> tuple[SavedGuest, str]:
    """Write a guest into a file and seal it."""
    with contextlib.closing(await files.create(path, mark, Bytes(MIB))) as file:
        os.pwrite(file.fileno(), STATE, file.offset)
        size, checksum = await file.measure()
        sealed = replace(SAVED, state_bytes=size, sha256=checksum)
        return sealed, await file.seal(sealed)


def names(path: str) -> list[str]:
    """Return what is in the directory."""
    return sorted(one.name for one in Path(path).parent.iterdir())


async def test_what_was_written_is_read(files: GuestStateFiles, path: str) -> None:
    """Header and state come back as they were; the file is the agent's alone."""
    sealed = await save(files, path)
    assert sealed.state_bytes == len(STATE)
    assert names(path) == ["web-7.guest"]
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert await files.read(path) == sealed
    with contextlib.closing(await files.claim(path, "c1", sealed)) as file:
        assert os.pread(file.fileno(), len(STATE) + 1, file.offset) == STATE


async def test_nobody_finds_what_is_not_finished(files: GuestStateFiles, path: str) -> None:
    """While it is written it cannot be read, and no second one is begun; given up nothing is left."""
    with contextlib.closing(await files.create(path, "s1", Bytes(MIB))):
        with pytest.raises(NotFound, match="is being written"):
            await files.read(path)
        with pytest.raises(BadInput, match="it is being written"):
            await files.create(path, "s2", Bytes(MIB))
        await files.discard(path, "s2")
        assert names(path) == ["web-7.guest", "web-7.guest.partial-s1"]
    await files.discard(path, "s1")
    await files.discard(path, "s1")
    assert names(path) == []


async def test_of_two_that_restore_one_finds_it(files: GuestStateFiles, path: str) -> None:
    """The other is told that it is being restored; given back it is as before; used up it is gone for good."""
    sealed = await save(files, path)
    (await files.claim(path, "c1", sealed)).close()
    for again in (files.claim(path, "c2", sealed), files.read(path)):
        with pytest.raises(NotFound, match="is being restored"):
            await again
    with pytest.raises(BadInput, match="it is being restored"):
        await files.create(path, "s2", Bytes(MIB))
    await files.give_back(path, "c1")
    await files.give_back(path, "c1")
    assert await files.read(path) == sealed
    (await files.claim(path, "c2", sealed)).close()
    await files.consume(path, "c2")
    await files.consume(path, "c2")
    assert names(path) == ["web-7.guest.restored-c2"]
    with pytest.raises(NotFound, match="must not run twice"):
        await files.read(path)


async def test_nothing_of_others_is_replaced(files: GuestStateFiles, path: str) -> None:
    """What somebody puts at a name that is ours to give stays, and he is told where the guest is."""
    _, digest = await write(files, path)
    Path(path).write_text("mine")
    with pytest.raises(Broken, match="another file by now"):
        await files.publish(path, "s1", digest)
    await files.discard(path, "other")
    assert Path(path).read_text() == "mine"
    Path(path).unlink()
    await files.publish(path, "s1", digest)
    await files.publish(path, "s1", digest)
    assert names(path) == ["web-7.guest"]
    (await files.claim(path, "c1", await files.read(path))).close()
    Path(path).write_text("mine")
    with pytest.raises(Broken, match="another file by now"):
        await files.give_back(path, "c1")
    assert Path(path).read_text() == "mine"


async def test_publishing_again_finds_what_became_of_it(files: GuestStateFiles, path: str) -> None:
    """Published, restored and used up by somebody else meanwhile is done; removed is lost, and said to be."""
    sealed, digest = await write(files, path)
    await files.publish(path, "s1", digest)
    (await files.claim(path, "c1", sealed)).close()
    await files.publish(path, "s1", digest)
    await files.consume(path, "c1")
    await files.publish(path, "s1", digest)
    assert names(path) == ["web-7.guest.restored-c1"]
    Path(f"{path}.restored-c1").unlink()
    with pytest.raises(Broken, match="Somebody has removed"):
        await files.publish(path, "s1", digest)


async def test_two_that_write_at_once(files: GuestStateFiles, path: str) -> None:
    """One gets the name; of the other nothing is left."""
    ends = await asyncio.gather(*(files.create(path, f"s{n}", Bytes(MIB)) for n in range(8)), return_exceptions=True)
    opened = [end for end in ends if not isinstance(end, BaseException)]
    assert len(opened) == 1
    assert all(isinstance(end, BadInput) for end in ends if isinstance(end, BaseException))
    opened[0].close()
    assert len(names(path)) == 2


@pytest.mark.parametrize("at", [HEADER_BYTES, HEADER_BYTES + len(STATE) - 1])
async def test_one_flipped_byte_is_found(files: GuestStateFiles, path: str, at: int) -> None:
    """It is told before any QEMU starts, and the file has its name again."""
    sealed = await save(files, path)
    with Path(path).open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    with pytest.raises(Broken, match="is damaged"):
        await files.claim(path, "c1", sealed)
    assert names(path) == ["web-7.guest"]


async def test_a_short_file_is_found(files: GuestStateFiles, path: str) -> None:
    """So is one that was cut, and one that somebody wrote on to."""
    sealed = await save(files, path)
    for size in (HEADER_BYTES + 5, HEADER_BYTES + len(STATE) + 5):
        os.truncate(path, size)
        with pytest.raises(Broken, match="is damaged"):
            await files.claim(path, "c1", sealed)


async def test_only_where_guests_may_have_files(tmp_path: Path) -> None:
    """Neither written nor read elsewhere, and never by a relative path."""
    files = GuestStateFiles(lambda path: None if path.startswith(str(tmp_path)) else "it is none of theirs")
    for path in ("/etc/shadow", "web-7.guest", "/"):
        with pytest.raises(BadInput):
            await files.read(path)
        with pytest.raises(BadInput):
            await files.create(path, "s1", Bytes(MIB))


async def test_no_room_is_told_before(files: GuestStateFiles, path: str) -> None:
    """With what is there and what may be needed; no file is left."""
    with pytest.raises(Refused, match=r"has .* left, 1048576\.1 GiB may be needed"):
        await files.create(path, "s1", Bytes(1 << 50))
    assert names(path) == []


async def test_a_link_is_not_followed(files: GuestStateFiles, path: str, tmp_path: Path) -> None:
    """Who can make links in the directory does not make the agent write elsewhere."""
    Path(f"{path}.partial-s1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Broken):
        await files.create(path, "s1", Bytes(MIB))
    assert not (tmp_path / "elsewhere").exists()


@given(st.binary(max_size=200))
def test_garbage_is_no_header(data: bytes) -> None:
    """Whatever stands at the start of a file, it is refused as such."""
    for header in (data, MAGIC + data):
        with pytest.raises(BadInput):
            load_header(header, "x")


@given(st.integers(min_value=0, max_value=len(dump_header(SAVED).rstrip(b"\0")) - 1))
def test_every_byte_of_the_header_counts(at: int) -> None:
    """One that is another than was written is found."""
    header = bytearray(dump_header(SAVED))
    header[at] ^= 1
    with pytest.raises(BadInput):
        load_header(bytes(header), "x")


def test_a_long_description_is_refused() -> None:
    """It would run into the state."""
    long = replace(GUEST, boot_hashes=tuple((str(number), "ab" * 32) for number in range(20_000)))
    with pytest.raises(Broken, match="more than a header"):
        dump_header(replace(SAVED, guest=long))

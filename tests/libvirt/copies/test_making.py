"""Images at the destination: made for a copy, removed without it; on libvirt's own imitation of storage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from vmferry.core.errors import Broken, TimedOut
from vmferry.core.units import MIB, Bytes
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.copies import ImagesThere, calls
from vmferry.libvirt.copies.images import Image, Size

SIZE = Size(Bytes(MIB), Bytes(0))
FIRST, SECOND = (Image(name, "default-pool", f"{name}.img", "raw", SIZE) for name in ("vda", "vdb"))


@pytest.fixture
async def connection() -> AsyncIterator[LibvirtConnection]:
    """A connection to libvirt's imitation; each has a world of its own only while nobody else is connected."""
    made = await LibvirtConnection.connect("test:///default")
    yield made
    for image in (FIRST, SECOND):
        await calls.remove_image(made, image)
    await made.close()


async def there(connection: LibvirtConnection) -> set[str]:
    """Return what is in the pool."""
    return set(await calls.list_volumes(connection, "default-pool"))


async def test_pools_are_read(connection: LibvirtConnection) -> None:
    """Name, directory, room."""
    (pool,) = await calls.list_pools(connection) or ()
    assert (pool.name, pool.directory, pool.is_active) == ("default-pool", "/default-pool", True)
    assert pool.available > MIB


async def test_images_are_made_and_removed(connection: LibvirtConnection) -> None:
    """What was there before stays in any case."""
    told: list[str] = []
    images = ImagesThere(connection, (FIRST, SECOND), told.append)
    await images.make()
    assert await there(connection) == {"vda.img", "vdb.img"}
    await images.remove()
    assert await there(connection) == set()
    await images.remove()  # nothing is left to do
    assert told == []


async def test_images_that_are_kept_stay(connection: LibvirtConnection) -> None:
    """The domain runs on them."""
    images = ImagesThere(connection, (FIRST,), print)
    await images.make()
    images.keep()
    await images.remove()
    assert await there(connection) == {"vda.img"}


async def test_all_or_none_and_never_another_ones(connection: LibvirtConnection) -> None:
    """Somebody made the second one meanwhile: it stays, and the first is removed again."""
    await calls.make_image(connection, SECOND)
    with pytest.raises(Broken, match="vdb.img in pool default-pool is there already"):
        await ImagesThere(connection, (FIRST, SECOND), print).make()
    assert await there(connection) == {"vdb.img"}


async def test_ctrl_c_while_an_image_is_made(connection: LibvirtConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call goes on in its thread; what it makes is removed nevertheless."""
    begun, go_on = asyncio.Event(), threading.Event()
    real = calls.make_image

    async def slow(to: LibvirtConnection, image: Image) -> None:
        begun.set()
        await asyncio.to_thread(go_on.wait, 20)
        await real(to, image)

    monkeypatch.setattr(calls, "make_image", slow)
    making = asyncio.create_task(ImagesThere(connection, (FIRST,), print).make())
    await begun.wait()
    making.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert await there(connection) == set()


async def test_an_image_that_may_come_to_be_later_is_told(
    connection: LibvirtConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon did not answer in time, and may go on with it: it is named, with what to do."""

    async def slow(_: LibvirtConnection, image: Image) -> None:
        raise TimedOut(f"no answer about {image.where}")

    monkeypatch.setattr(calls, "make_image", slow)
    told: list[str] = []
    with pytest.raises(TimedOut):
        await ImagesThere(connection, (FIRST,), told.append).make()
    (sentence,) = told
    assert "vda.img in pool default-pool" in sentence
    assert "virsh vol-delete vda.img --pool default-pool" in sentence


async def test_an_image_that_cannot_be_removed_is_told(connection: LibvirtConnection) -> None:
    """With its name, and what to do by hand."""
    told: list[str] = []
    lost = await LibvirtConnection.connect("test:///default")
    images = ImagesThere(lost, (FIRST,), told.append)
    await images.make()
    await lost.close()
    await images.remove()
    (sentence,) = told
    assert "vda.img in pool default-pool" in sentence
    assert "virsh vol-delete vda.img --pool default-pool" in sentence
    assert await there(connection) == {"vda.img"}

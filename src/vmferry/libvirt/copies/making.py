"""The images that a copy needs at the destination, for as long as it is not certain that the domain runs on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmferry.core.errors import Broken, TimedOut, Unreachable, VmferryError
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.copies import calls
from vmferry.libvirt.copies.images import Image


class ImagesThere:
    """Makes the images, and removes those that it has made; others are never touched.

    Args:
        connection: to the destination's daemon.
        images: what is to be made.
        tell: gets a sentence for a person.
    """

    def __init__(self, connection: LibvirtConnection, images: tuple[Image, ...], tell: Callable[[str], object]) -> None:
        self._connection = connection
        self._images = images
        self._tell = tell
        self._made: list[Image] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that would be removed."""
        return not self._made

    async def make(self) -> None:
        """Make all of them, or none.

        Raises:
            Broken: one is there already, or libvirt cannot make it; those that were made are removed.
        """
        try:
            for image in self._images:
                await self._make_one(image)
        except BaseException:
            await self.remove()
            raise

    async def _make_one(self, image: Image) -> None:
        # looked at once more: for qcow2 libvirt would write over what has come there meanwhile
        if image.volume in await calls.list_volumes(self._connection, image.pool):
            raise Broken(f"Image {image.where} is there already", fix="find out whose it is, then try again")
        making = asyncio.create_task(calls.make_image(self._connection, image))
        try:
            await asyncio.shield(making)
        finally:  # also when nobody waits any more: what comes to be is ours to remove
            await asyncio.wait({making})
            if (failed := making.exception()) is None:
                self._made.append(image)
            elif isinstance(failed, TimedOut | Unreachable):  # the daemon may go on with it, or be done
                self._tell(
                    f"warning: whether {image.where} has come to be at the destination is not known ({failed});"
                    f" if it has, it is empty and nobody's: virsh vol-delete {image.volume} --pool {image.pool} there"
                )

    async def remove(self) -> None:
        """Remove what was made; what cannot be removed is told with what to do. For when no domain there has it."""
        while self._made:
            image = self._made.pop()
            try:
                await calls.remove_image(self._connection, image)
            except VmferryError as error:
                by_hand = f"virsh vol-delete {image.volume} --pool {image.pool} there"
                self._tell(f"warning: half a copy is left at the destination, {image.where}: {error.what}; {by_hand}")

    def keep(self) -> None:
        """Have them stay: the domain runs on them, or nobody knows."""
        self._made.clear()

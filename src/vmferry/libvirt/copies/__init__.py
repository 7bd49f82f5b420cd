"""Disks that are copied in a move: which, whether they can be, and the images that they need at the destination.

libvirt copies (NBD); the images are made here, over libvirt's storage API, and removed when the domain does not arrive.
What is at the source is never changed.
"""

from __future__ import annotations

from vmferry.libvirt.copies.asking import ask_copies
from vmferry.libvirt.copies.images import Copies, Image
from vmferry.libvirt.copies.making import ImagesThere

__all__ = ["Copies", "Image", "ImagesThere", "ask_copies"]

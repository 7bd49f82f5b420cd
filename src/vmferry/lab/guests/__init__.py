"""The built-in guests: made by code, the same bytes every time, each with a beat and an integrity oracle."""

from vmferry.lab.guests.build import KINDS, build
from vmferry.lab.guests.image import GuestImage, GuestKind

__all__ = ["KINDS", "GuestImage", "GuestKind", "build"]

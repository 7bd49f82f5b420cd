"""libvirt's event loop runs before any test of this folder."""

from tests.libvirt_loop import running_event_loop

__all__ = ["running_event_loop"]

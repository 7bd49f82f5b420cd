"""The article's write throttle: the host's side of a helper that runs in the guest, and the helper's source.

`protocol.py` is the line protocol as values, `channel.py` speaks it over a guest's virtio-serial port, `program.py`
compiles the helper (`helper/*.c`). docs/write-throttle.md says what it covers and what it cannot.
"""

from vmferry.guest_throttle.channel import ThrottleChannel
from vmferry.guest_throttle.protocol import PORT_NAME, ThrottleFigures, ThrottleOrder, order_for_link

__all__ = ["PORT_NAME", "ThrottleChannel", "ThrottleFigures", "ThrottleOrder", "order_for_link"]

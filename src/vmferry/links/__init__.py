"""The agents' own connections for streams: made and authenticated here, carried on by QEMU.

`preamble.py` is the few bytes at a connection's start, `door.py` the port that waits for them, `dial.py` the other end.
"""

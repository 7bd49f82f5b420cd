"""The receiver on real loopback sockets."""

from __future__ import annotations

import socket
import time

import pytest

from vmferry.measure.receiver import BeatReceiver
from vmferry.measure.stamps import realtime_ahead_ns, received, stamping_socket


def _send(port: int, *numbers: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in numbers:
            sock.sendto(bytes([number % 256]), ("127.0.0.1", port))


def _stamps_of_one_busy_read(receiver: BeatReceiver) -> tuple[int, list[int], int]:
    before = time.monotonic_ns()
    _send(receiver.port, 0, 1, 2)
    after = time.monotonic_ns()
    while time.monotonic_ns() < after + 20_000_000:  # the reader is busy with something else
        pass
    return before, list(receiver.stamps(before, time.monotonic_ns() + 10**9))[-3:], after


async def test_beats_carry_the_kernels_stamp_not_the_readers() -> None:
    """Beats that are read 20 ms late are stamped when they came, on the monotonic clock."""
    async with BeatReceiver() as receiver:
        # The first such socket of a machine makes the kernel patch its stamping in, a little later.
        for _ in range(50):
            before, stamps, after = _stamps_of_one_busy_read(receiver)
            if stamps[-1] <= after + 1_000_000:
                break
        assert len(stamps) == 3
        assert before - 1_000_000 <= stamps[0] <= stamps[-1] <= after + 1_000_000


async def test_reading_goes_on_by_itself() -> None:
    """Inside the context beats are taken without anybody asking."""
    async with BeatReceiver() as receiver:
        _send(receiver.port, *range(300))
        await receiver.wait_for_beats(300)
        assert (receiver.total, receiver.missed, receiver.lost_by_kernel) == (300, 0, 0)


async def test_a_port_can_be_taken_again_after_closing() -> None:
    """An agent that restarts finds its guests' beats at the port that QEMU still sends to."""
    async with BeatReceiver() as receiver:
        port = receiver.port
    async with BeatReceiver(port) as again:
        _send(port, 7)
        await again.wait_for_beats(1)
        assert again.total == 1


async def test_a_taken_port_is_refused() -> None:
    """Two receivers never share the beats of one guest."""
    async with BeatReceiver() as receiver:
        with pytest.raises(OSError, match="in use"):
            BeatReceiver(receiver.port)


def test_the_kernels_losses_are_told() -> None:
    """When more comes than the buffer holds, the count of losses comes with the next datagram."""
    with stamping_socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's minimum
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        _send(port, *range(200))
        kept = len(list(received(sock)))
        _send(port, 0)
        (last,) = received(sock)
    assert kept < 200
    assert last.dropped == 200 - kept


def test_the_two_clocks_are_compared_closely() -> None:
    """Two comparisons in a row agree to far less than a millisecond, or a migration's gap could not be told."""
    differences = [abs(realtime_ahead_ns() - realtime_ahead_ns()) for _ in range(20)]
    assert min(differences) < 100_000

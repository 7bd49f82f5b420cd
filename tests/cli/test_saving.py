"""`vmferry save` and `restore`: what is asked of whom, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.cli.conftest import FakeFleet, Ran, guest_view

Vmferry = Callable[..., Ran]
SAVED = {"path": "/srv/web-7.guest", "state_bytes": 64 << 20, "epoch": 4}


def test_save_asks_the_guests_host(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """The path travels as it is; size and epoch are told."""
    fleet.has_guests(host_a=[guest_view()], host_b=[])
    fleet.answer("host-a", "POST", "/v1/guests/web-7/save", SAVED)
    ran = vmferry("save", "web-7", "/srv/web-7.guest")
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out == "guest web-7 is in /srv/web-7.guest on host-a (64.0 MiB), epoch 4\n"
    orders = [("POST", "/v1/guests/web-7/save", {"path": "/srv/web-7.guest"})]
    assert fleet.agents["host-a"].orders() == orders
    assert json.loads(vmferry("save", "web-7", "/srv/web-7.guest", "--json").out) == SAVED


def test_restore_asks_the_named_host(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """And nobody else."""
    fleet.answer("host-b", "POST", "/v1/restore", guest_view() | {"run_state": "running", "epoch": 5})
    ran = vmferry("restore", "/srv/web-7.guest", "--on", "host-b")
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out == "guest web-7 goes on on host-b: running, epoch 5\n"
    assert fleet.agents["host-b"].orders() == [("POST", "/v1/restore", {"path": "/srv/web-7.guest"})]
    assert fleet.agents["host-a"].orders() == []


@pytest.mark.parametrize("words", [("save", "web-7", "web-7.guest"), ("restore", "x", "--on", "host-b")])
def test_a_relative_path_asks_nobody(fleet: FakeFleet, vmferry: Vmferry, words: tuple[str, ...]) -> None:
    """It is the host's file that is meant, not one of this machine."""
    fleet.has_guests(host_a=[guest_view()], host_b=[])
    ran = vmferry(*words)
    assert ran.exit_code == 2
    assert "is not an absolute path" in ran.err
    assert [agent.orders() for agent in fleet.agents.values()] == [[], []]


def test_cancel_ends_a_save(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """Where no hand-over of that name is under way, and the guest is being saved."""
    fleet.has_handovers(host_a=[], host_b=[])
    fleet.has_guests(host_a=[guest_view(busy_with="save to /srv/x")], host_b=[])
    fleet.answer("host-a", "POST", "/v1/guests/web-7/cancel-save", guest_view())
    ran = vmferry("cancel", "web-7")
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out == "guest web-7 goes on on host-a: running\n"
    fleet.has_guests(host_a=[guest_view()], host_b=[])
    assert vmferry("cancel", "web-7").exit_code == 2

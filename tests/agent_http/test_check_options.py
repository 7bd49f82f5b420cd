"""What `check` asks of the hosts, by the options of the move that is thought of."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from vmferry.agent.links import Links
from vmferry.agent.service import Service
from vmferry.api import models as m
from vmferry.conductor.link import LinkSpeed
from vmferry.conductor.plan import Asked
from vmferry.core.errors import BadInput
from vmferry.core.ids import GuestName, HostName


class Asks:
    """The parts of an agent that `check` asks; they remember whether post-copy was spoken of."""

    def __init__(self) -> None:
        self.postcopy: list[bool] = []

    async def check(
        self, name: object, destination: object, handover: object, *, postcopy: bool, stream: object, copy_disks: bool
    ) -> SimpleNamespace:
        self.postcopy.append(postcopy)
        return SimpleNamespace(blockers=(), guarantee=None, qemus=None)

    async def foresee(self, asked: Asked, qemus: object) -> SimpleNamespace:
        self.postcopy.append(asked.postcopy)
        return SimpleNamespace(blockers=(), left_out=())

    async def brake_blockers(self, guest: object, throttle: str | None) -> tuple[()]:
        return ()

    def row(self, name: object) -> SimpleNamespace:
        return SimpleNamespace(guest=SimpleNamespace(spec=SimpleNamespace(memory_bytes=0)))


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({}, False), ({"postcopy": True}, True), ({"postcopy_after": 2}, True)],
    ids=["nothing", "allowed", "a round"],
)
async def test_a_round_for_postcopy_allows_it(options: dict[str, Any], allowed: bool) -> None:
    """Who names only the round is told of post-copy's blockers beforehand, as `migrate` will find them."""
    asks = Asks()
    parts: dict[str, Any] = {field.name: None for field in fields(Service)}
    parts |= {"checking": asks, "handovers": asks, "guests": asks, "known_hosts": lambda: ("host-b",)}
    parts["links"] = Links(HostName("host-a"), None, lambda host: LinkSpeed(None, None, ""), lambda host: None)
    await Service(**parts).check(
        GuestName("web-7"), m.CheckRequest(destination="host-b", options=m.MigrateOptions(**options))
    )
    assert asks.postcopy == [allowed, allowed]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"plain": True, "encryption": "psk"}, "--plain encrypts nothing"),
        ({"plain": True, "encryption": "x509"}, "--plain encrypts nothing"),
        ({"pipeline": "age", "encryption": "x509"}, "its commands encrypt"),
    ],
    ids=["plain", "plain and x509", "pipeline"],
)
async def test_encryption_by_nobody_is_refused(options: dict[str, Any], told: str) -> None:
    """Who says by what QEMU encrypts what QEMU does not encrypt is told, and no host is asked anything."""
    asks = Asks()
    parts: dict[str, Any] = {field.name: None for field in fields(Service)}
    parts |= {"checking": asks, "handovers": asks, "guests": asks, "known_hosts": lambda: ("host-b",)}
    body = m.CheckRequest(destination="host-b", options=m.MigrateOptions(**options))
    with pytest.raises(BadInput, match=told):
        await Service(**parts).check(GuestName("web-7"), body)
    assert asks.postcopy == []

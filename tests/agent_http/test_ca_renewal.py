"""Members with the CA's old certificate and members with its renewed one trust each other over TLS."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vmferry.api.client import Client
from vmferry.pki.identity import IdentityDirectory
from vmferry.testing.fleet_kit import Served, World, serve


async def ask(served: Served, identity: IdentityDirectory) -> dict[str, Any]:
    """Ask for the host."""

    def run() -> dict[str, Any]:
        with Client(served.endpoint, identity.client_context(), time_limit_s=10) as client:
            return client.request("GET", "/v1/host")

    return await asyncio.to_thread(run)


async def test_old_and_new_go_together(world: World, tmp_path: Path) -> None:
    """Whoever takes the renewed certificate first, client or server, is understood by the other."""
    renewed = world.kit.authority.renew()
    world.admin.replace_ca(renewed)
    assert (await ask(world.served, world.admin))["name"] == "host-a"
    world.host_a.replace_ca(renewed)
    async with serve(world.host_a, world.service, tmp_path / "no-ca") as again:
        assert (await ask(again, world.reader))["name"] == "host-a"
        assert (await ask(again, world.admin))["name"] == "host-a"

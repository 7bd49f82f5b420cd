"""What the server does with requests that are wrong, huge, slow or strange; and with handlers that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from dataclasses import replace
from typing import Any

import pytest

from vmferry.agent.dispatch import Table
from vmferry.agent.http import MOST_BODY_BYTES
from vmferry.api.problems import from_problem, to_problem
from vmferry.api.routes import ROUTES, Route
from vmferry.core.errors import BadInput, Blocked, GuestBusy, NotFound, TimedOut, VmferryError
from vmferry.testing.fleet_kit import World


async def raw(world: World, content: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as the operator and return status, headers and body of what comes back."""
    endpoint = world.served.endpoint
    reader, writer = await asyncio.open_connection(
        endpoint.address, endpoint.port, ssl=world.admin.client_context(), server_hostname=endpoint.server_name
    )
    try:
        writer.write(content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body
    finally:
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    """Return a POST request."""
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + body


async def problem(world: World, content: bytes) -> dict[str, Any]:
    """Send bytes; hold that a problem comes back, and return it."""
    status, headers, body = await raw(world, content)
    decoded: dict[str, Any] = json.loads(body)
    assert headers["content-type"] == "application/problem+json"
    assert decoded["status"] == status
    return decoded


CHECK = "/v1/guests/web-7/check"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"\xff\xfe garbage", "Invalid JSON"),
        (b"{" * 5000, "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"{}", "destination: Field required"),
        (b'{"destination": "host-b", "colour": 1}', "colour: unknown key"),
        (b'{"destination": 7}', "destination: Input should be a valid string"),
        (b'{"destination": "Host B"}', "destination: String should match"),
    ],
)
async def test_wrong_bodies(world: World, body: bytes, told: str) -> None:
    """A body that is not right is a 400 that names what is wrong, and the service is not called."""
    answer = await problem(world, post(CHECK, body))
    assert (answer["status"], answer["code"]) == (400, "bad-input")
    assert told in answer["what"]
    assert world.service.calls == []


async def test_unknown_key_deep_inside(world: World) -> None:
    """An unknown key is named at every depth: a guest's key is never silently ignored."""
    spec = {"name": "web-8", "memory_bytes": 1 << 30, "boot": {}, "nics": [{"colour": 7}]}
    answer = await problem(world, post("/v1/guests", json.dumps({"spec": spec}).encode()))
    assert "spec.nics.0.colour: unknown key" in answer["what"]


async def test_values_are_not_repeated(world: World) -> None:
    """A problem names keys, never values: they may be secret."""
    answer = await problem(world, post("/v1/ca/renew", b'{"request": 5, "psk_key": "deadbeef"}'))
    assert "psk_key" in answer["what"]
    assert "deadbeef" not in json.dumps(answer)


async def test_oversized_body(world: World) -> None:
    """A body over the limit is a 413, announced or not, and is not kept."""
    filler = b'{"destination": "' + b"a" * MOST_BODY_BYTES + b'"}'
    answer = await problem(world, post(CHECK, filler))
    assert answer["status"] == 413
    chunks = b"".join(b"10000\r\n" + b"a" * 65536 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
    head = f"POST {CHECK} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = await problem(world, head + chunks)
    assert answer["status"] == 413
    assert world.service.calls == []


async def test_slow_body(world: World) -> None:
    """A body that does not come in time ends the request."""
    answer = await problem(world, post(CHECK, b'{"desti', length=1000))
    assert answer["code"] == "timed-out"
    assert world.service.calls == []


async def test_not_http(world: World) -> None:
    """What is not HTTP gets a 400 problem, and the server goes on."""
    answer = await problem(world, b"\x00\x01\x02 nonsense\r\n\r\n")
    assert (answer["status"], answer["code"]) == (400, "bad-input")
    assert (await raw(world, b"GET /v1/host HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200


async def test_compressed_body_is_not_unpacked(world: World) -> None:
    """A compressed body is refused as it is: a small one could become a huge one."""
    head = f"POST {CHECK} HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n".encode()
    assert (await problem(world, head + b"\x1f\x8b\x08\x00"))["status"] == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/", 404, "nothing at /"),
        ("GET", "/v1/nothing", 404, "nothing at"),
        ("PATCH", "/v1/guests", 405, "known: GET, POST"),
        ("GET", "/v1/guests/..%2f..%2fetc", 404, "nothing at"),
        ("GET", "/v1/guests/Web_7", 404, "cannot be its name"),
        ("GET", "/v1/guests/web-8", 404, "no guest web-8"),
        ("GET", "/v1/handovers/%00", 404, "cannot be its name"),
    ],
)
async def test_wrong_paths(world: World, method: str, path: str, status: int, told: str) -> None:
    """A path or method that is not known is a 404 or 405 that says so."""
    answer = await problem(world, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer["status"] == status
    assert told in answer["what"]


async def test_body_where_none_belongs(world: World) -> None:
    """A GET with a body is refused, since somebody meant something by it."""
    answer = await problem(world, b"GET /v1/host HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxx")
    assert "takes no body" in answer["what"]


async def test_failing_handler(world: World) -> None:
    """A bug in a handler is a 500 without its insides, and the server goes on."""
    world.service.failures["host"] = KeyError("secret inside")
    answer = await problem(world, b"GET /v1/host HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer["status"] == 500
    assert "secret" not in json.dumps(answer)
    world.service.failures.clear()
    assert (await raw(world, b"GET /v1/host HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200


async def test_late_handler_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a handler takes too long its caller is told, and the handler runs to its end."""
    world.service.hold = asyncio.Event()
    impatient = tuple(replace(route, time_limit_s=0.05) if route.handler == "check" else route for route in ROUTES)
    server = world.served.server
    monkeypatch.setattr(server, "_table", Table(impatient))
    answer = await problem(world, post(CHECK, b'{"destination": "host-b"}'))
    assert (answer["status"], answer["code"]) == (504, "timed-out")
    assert "goes on" in answer["what"]
    world.service.hold.set()
    await asyncio.gather(*server._running)
    assert world.service.calls[-1] == ("check ended",)


@pytest.mark.parametrize(
    "error",
    [
        BadInput("no such thing", fix="do it right"),
        NotFound("no guest"),
        GuestBusy("web-7 is busy", owner="host-a", retry=True),
        TimedOut("slow", side="destination"),
        VmferryError("something"),
    ],
    ids=lambda error: str(error.code),
)
def test_problem_round_trip(error: VmferryError) -> None:
    """What an agent raises is what its client raises: class, attributes and text."""
    again = from_problem(json.loads(json.dumps(to_problem(error))), error.http_status, "host-a")
    assert type(again) is type(error)
    assert again == error
    assert str(again) == str(error)


async def test_blocked_keeps_its_blockers(world: World) -> None:
    """Every blocker arrives at the client, with its fix."""
    with world.served.client(world.admin) as client, pytest.raises(Blocked) as caught:
        await asyncio.to_thread(client.request, "POST", "/v1/guests/web-7/migrate", {"destination": "host-x"})
    assert [blocker.code for blocker in caught.value.blockers] == ["memory.too-small"]
    assert caught.value.blockers[0].fix == "add memory"
    assert caught.value.owner == "host-a"


@pytest.mark.parametrize("body", [None, [], "x", {"what": 7}, {"title": "Bad Gateway"}])
def test_strange_problem_bodies(body: object) -> None:
    """A body that is no problem still becomes an error that names the host."""
    assert "host-a" in str(from_problem(body, 502, "host-a"))


def test_every_route_is_found() -> None:
    """Each route of the table is found by its own method and path, and no two share them."""
    table = Table(ROUTES)

    def concrete(route: Route) -> str:
        return route.path.replace("{name}", "web-7").replace("{handover}", "h1")

    assert [table.match(route.method, concrete(route))[0] for route in ROUTES] == list(ROUTES)

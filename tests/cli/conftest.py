"""A fleet of fake agents: real TLS, real identities, answers from a table; every request is recorded in order."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.libvirt_loop import running_event_loop

from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import HostMember, OperatorMember, Role

__all__ = ["running_event_loop"]  # the commands about libvirt's domains open connections

Answer = tuple[int, Any]


class FakeAgent:
    """One agent that answers from its table. What is not in the table is a 404 problem, as the real one gives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answers: dict[tuple[str, str], Answer | Callable[[Any], Answer]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self, context: ssl.SSLContext) -> None:
        """Serve with this identity."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread.start()

    def stop(self) -> None:
        """End. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def orders(self) -> list[tuple[str, str, Any]]:
        """Return the requests that change something."""
        return [request for request in self.requests if request[0] != "GET"]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        agent = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                agent.requests.append((self.command, self.path, body))
                answer = agent.answers.get((self.command, self.path))
                if answer is None:
                    what = f"nothing at {self.path}"
                    answer = (404, {"code": "not-found", "what": what, "fix": "look elsewhere"})
                status, reply = answer(body) if callable(answer) else answer
                if isinstance(reply, Iterator):
                    self._stream(status, reply)
                    return
                lines = isinstance(reply, list)
                data = "".join(json.dumps(line) + "\n" for line in reply) if lines else json.dumps(reply)
                content = b"" if status == 204 else data.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(content)

            def _stream(self, status: int, lines: Iterator[Any]) -> None:
                self.send_response(status)
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                with contextlib.suppress(OSError):  # the reader may leave at any moment
                    for line in lines:
                        self.wfile.write(json.dumps(line).encode() + b"\n")
                        self.wfile.flush()

            do_GET = do_POST = do_DELETE = do_PUT = _serve  # noqa: N815  # names that http.server asks for

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        return Handler


@dataclass
class FakeFleet:
    """Two agents, host-a and host-b, and the directory of an operator who knows them."""

    agents: dict[str, FakeAgent]
    config: Path
    authority: Authority
    released: threading.Event = field(default_factory=threading.Event)  #: ends streams that wait for it

    def answer(self, host: str, method: str, path: str, reply: Any, status: int = 200) -> None:
        """Put one answer into a host's table; a list is a stream of lines."""
        self.agents[host].answers[method, path] = (status, reply)

    def moved_to(self, host: str, port: int) -> None:
        """Let the operator's fleet document say that a host's agent is at another port."""
        membership = self.authority.membership()
        hosts = tuple(replace(m, port=port) if m.name == host else m for m in membership.hosts)
        signed = self.authority.publish(replace(membership, version=membership.version + 1, hosts=hosts))
        IdentityDirectory(self.config).accept_membership(signed)

    def has_guests(self, **hosts: list[dict[str, Any]]) -> None:
        """Let each host list these guests; hosts are named with _ for -."""
        for name in self.agents:
            rows = hosts.get(name.replace("-", "_"), [])
            self.answer(name, "GET", "/v1/guests", {"guests": rows})

    def has_handovers(self, **hosts: list[dict[str, Any]]) -> None:
        """Let each host list these hand-overs."""
        for name in self.agents:
            self.answer(name, "GET", "/v1/handovers", {"handovers": hosts.get(name.replace("-", "_"), [])})


def guest_view(name: str = "web-7", host: str = "host-a", **changes: Any) -> dict[str, Any]:
    """Return a guest as an agent shows it."""
    view: dict[str, Any] = {
        "name": name,
        "uuid": "6f1c1a1e-0000-4000-8000-000000000007",
        "host": host,
        "owner": host,
        "epoch": 1,
        "desired": "running",
        "run_state": "running",
        "acceleration": "tcg",
        "acceleration_tag": "TCG",
        "pid": 4711,
        "busy_with": None,
        "note": None,
        "spec": {"name": name, "memory_bytes": 512 * 2**20, "vcpus": 1, "disks": []},
        "macs": [],
    }
    return {**view, **changes}


def handover_view(handover: str = "h-1", **changes: Any) -> dict[str, Any]:
    """Return a hand-over as an agent shows it."""
    view: dict[str, Any] = {
        "handover": handover,
        "guest": "web-7",
        "side": "source",
        "source": "host-a",
        "destination": "host-b",
        "state": "precopy",
        "step": 2,
        "owner": "host-a",
        "finished": False,
        "created_at": 1_700_000_000.0,
        "progress": None,
        "report": None,
    }
    return {**view, **changes}


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    """Two fake agents and VMFERRY_CONFIG with an operator of their fleet."""
    authority = Authority.create(tmp_path / "ca", lifetime_s=3600)
    agents = {name: FakeAgent(name) for name in ("host-a", "host-b")}
    membership = authority.membership()
    for name, agent in agents.items():
        membership = membership.with_host(HostMember(name, "127.0.0.1", agent.port, certs.make_enrolment()))
    operator = OperatorMember("ada", Role.OPERATE, certs.make_enrolment())
    membership = membership.with_operator(operator)
    signed = authority.publish(membership)
    for name, agent in agents.items():
        directory = IdentityDirectory(tmp_path / name)
        key = certs.make_key()
        certificate = authority.issue(membership.host(name).identity, certs.make_request(key), membership)
        directory.save(key, certificate, authority.certificate, signed)
        agent.start(directory.server_context())
    key = certs.make_key()
    config = tmp_path / "operator"
    certificate = authority.issue(operator.identity, certs.make_request(key), membership)
    IdentityDirectory(config).save(key, certificate, authority.certificate, signed)
    monkeypatch.setenv("VMFERRY_CONFIG", str(config))
    yield FakeFleet(agents, config, authority)
    for agent in agents.values():
        agent.stop()


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    exit_code: int
    out: str
    err: str


@pytest.fixture
def vmferry(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the command in this process, through `main`, as a shell would."""
    from vmferry.cli.main import main

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["vmferry", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Ran(int(caught.value.code or 0), captured.out, captured.err)

    return run

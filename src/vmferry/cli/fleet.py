"""The agents that this operator knows: whom to ask, and where a guest or a hand-over is."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmferry.cli.output import waiting_for
from vmferry.core.errors import BadInput, Denied, NotFound, Unreachable, VmferryError
from vmferry.core.ids import is_name

if TYPE_CHECKING:
    import ssl

    from vmferry.api.client import Client, Endpoint
    from vmferry.pki.identity import IdentityDirectory

#: For questions that go to every host: one that is down must not hold up the answer of the others.
ASK_ALL_TIME_LIMIT_S = 3.0
#: When a host that answered knows what is looked for, the others get so much longer to know it too.
_OTHERS_S = 0.3


def identity_directory() -> Path:
    """Return where the operator's identity is: `$VMFERRY_CONFIG`, else `~/.config/vmferry`."""
    named = os.environ.get("VMFERRY_CONFIG")
    return Path(named) if named else Path.home() / ".config" / "vmferry"


@dataclass(frozen=True, slots=True)
class Answers:
    """What every host said: an answer, or why there is none."""

    answers: dict[str, dict[str, Any]]
    silent: dict[str, VmferryError] = field(default_factory=dict)

    def silent_text(self) -> str:
        """Return one sentence about the hosts that did not answer, empty when all did."""
        return "; ".join(f"{host} did not answer ({error.what})" for host, error in sorted(self.silent.items()))


class Fleet:
    """Asks the agents of the fleet as one operator.

    Args:
        endpoints: the agents by name.
        context: TLS as the operator.
        refresh: fetches a newer fleet document through the given fleet; returns the endpoints of then.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        context: ssl.SSLContext,
        refresh: Callable[[Fleet], Mapping[str, Endpoint]] | None = None,
    ) -> None:
        self._endpoints = dict(endpoints)
        self.context = context
        self._refresh = refresh

    @property
    def hosts(self) -> list[str]:
        """Names of the hosts, sorted."""
        return sorted(self._endpoints)

    def endpoint(self, host: str) -> Endpoint:
        """Return where one host's agent is.

        Raises:
            NotFound: no such host, also not in the newest fleet document that can be had.
        """
        if host not in self._endpoints:
            self.refresh()
        if host not in self._endpoints:
            known = ", ".join(self.hosts) or "none"
            raise NotFound(
                f"host {host} is not in the fleet; hosts: {known}",
                fix="see `vmferry host list` for the hosts there are",
            )
        return self._endpoints[host]

    def refresh(self) -> None:
        """Look where the hosts are by the newest fleet document that can be had; without one nothing changes."""
        if self._refresh is not None:
            with contextlib.suppress(VmferryError):  # nobody answers: the document of last time decides
                self._endpoints = dict(self._refresh(self))

    def client(self, host: str) -> Client:
        """Return a client of one host's agent; raises as `endpoint` does."""
        from vmferry.api.client import Client

        return Client(self.endpoint(host), self.context)

    def ask(
        self,
        host: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        time_limit_s: float | None = None,
        what: str = "its answer",
    ) -> dict[str, Any]:
        """Ask one agent and return its answer; raises as `Client.request` does, and NotFound for an unknown host.

        Args:
            host: whom.
            method: how.
            path: what.
            body: with what.
            time_limit_s: for the answer.
            what: what a person is told that we wait for, when it takes long.
        """
        with self.client(host) as client, waiting_for(f"{host}: {what}"):
            return client.request(method, path, body, time_limit_s=time_limit_s)

    def stream(self, host: str, path: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of one agent's stream; raises as `Client.stream` does."""
        with self.client(host) as client:
            yield from client.stream(path)

    def ask_all(
        self,
        path: str,
        method: str = "GET",
        body: dict[str, Any] | None = None,
        *,
        time_limit_s: float = ASK_ALL_TIME_LIMIT_S,
        without: str | None = None,
        enough: Callable[[dict[str, Any]], bool] | None = None,
    ) -> Answers:
        """Ask every host at once; a host that does not answer in time is named, not fatal.

        Args:
            path: what to ask.
            method: how.
            body: with what.
            time_limit_s: for each answer.
            without: a host that is not asked.
            enough: tells of an answer whether it is the one that is looked for; the others are not waited for then.

        Raises:
            BadInput: there is no host to ask.
            VmferryError: no host answered at all; the first host's error.
        """
        hosts = [host for host in self.hosts if host != without]
        if not hosts:
            raise BadInput("there is no host to ask in the fleet", fix="enrol one with `vmferry host add`")

        def ask(host: str) -> dict[str, Any] | Exception:
            try:
                with self.client(host) as client:
                    return client.request(method, path, body, time_limit_s=time_limit_s)
            except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
                return error

        with waiting_for("hosts that do not answer"):
            both = dict(_as_they_come(hosts, ask, enough))
        for result in both.values():
            if isinstance(result, Exception) and not isinstance(result, VmferryError):
                raise result
        answers = {host: result for host, result in both.items() if isinstance(result, dict)}
        silent = {host: result for host, result in both.items() if isinstance(result, VmferryError)}
        if not answers:
            raise silent[min(silent)]
        return Answers(answers, silent)

    def guests(self, name: str | None = None) -> tuple[list[dict[str, Any]], Answers]:
        """Return every guest once, as its owner shows it, and what the hosts said.

        Args:
            name: only this one; hosts that do not answer are not waited for once one that does has it.
        """

        def has_it(answer: dict[str, Any]) -> bool:
            return any(view["name"] == name for view in answer.get("guests", []))

        answers = self.ask_all("/v1/guests", enough=None if name is None else has_it)
        newest: dict[tuple[str, str], dict[str, Any]] = {}  # two guests of one name are two, and must be seen
        for view in (view for answer in answers.answers.values() for view in answer.get("guests", [])):
            key = (view["name"], view["uuid"])
            if name in {None, view["name"]} and (key not in newest or _rank(view) > _rank(newest[key])):
                newest[key] = view
        return sorted(newest.values(), key=lambda view: (view["name"], view["host"])), answers

    def find_guest(self, name: str) -> str:
        """Return the host to ask about a guest: its owner, else one that knows it.

        Raises:
            BadInput: that cannot be a guest's name, or two guests have it.
            NotFound: no host has it, and all answered.
            Unreachable: no host that answered has it, and some did not answer.
        """
        check_guest_name(name)
        views, answers = self.guests(name)
        if not views:
            raise _unknown(f"guest {name} is not known", answers, "see `vmferry guest list`")
        if len(views) > 1:
            hosts = " and on ".join(view["host"] for view in views)
            raise BadInput(
                f"there are several guests of the name {name}: on {hosts}",
                fix=f"stop and remove all but one, with the others' agents stopped (hosts: {hosts})",
            )
        return str(views[0]["host"])

    def handovers(self) -> tuple[list[dict[str, Any]], Answers]:
        """Return every hand-over once, newest first; `asked` is the host to ask: the source where it answers."""
        answers = self.ask_all("/v1/handovers")
        best: dict[str, dict[str, Any]] = {}
        for host, answer in answers.answers.items():
            for view in answer.get("handovers", []):
                known = best.get(view["handover"])
                if known is None or view["side"] == "source":
                    best[view["handover"]] = {**view, "asked": host}
        rows = sorted(best.values(), key=lambda view: view["created_at"], reverse=True)
        return rows, answers

    def find_handover(self, word: str | None, *, unfinished: bool = False) -> dict[str, Any]:
        """Return a hand-over by its id or its guest's name (then the newest); without a word the only one under way.

        Args:
            word: id, guest, or None.
            unfinished: whether only one that is under way will do.

        Raises:
            NotFound: there is none, and all hosts answered.
            Unreachable: there is none on the hosts that answered.
            BadInput: no word, and several are under way.
        """
        rows, answers = self.handovers()
        open_only = unfinished or word is None
        found = [
            row
            for row in rows
            if (word is None or word in (row["handover"], row["guest"])) and not (open_only and row["finished"])
        ]
        if word is None and len(found) > 1:
            names = ", ".join(f"{row['handover']} ({row['guest']})" for row in found)
            raise BadInput(f"{len(found)} hand-overs are under way: {names}", fix="name one of them")
        if found:
            return found[0]
        of = f" of {word}" if word else ""
        what = f"no hand-over{of} is {'under way' if open_only else 'known'}"
        raise _unknown(what, answers, "see `vmferry handover list`")


def check_guest_name(name: str) -> None:
    """Refuse what cannot be a guest's name, before anybody is asked.

    Raises:
        BadInput: it cannot.
    """
    if not is_name(name):
        raise BadInput(
            f"{name!r} cannot be the name of a guest",
            fix="names are up to 63 of a-z, 0-9 and -; `vmferry guest list` shows those that there are",
        )


def _as_they_come(
    hosts: list[str],
    ask: Callable[[str], dict[str, Any] | Exception],
    enough: Callable[[dict[str, Any]], bool] | None,
) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """Yield each host's answer; who has not answered when there is enough is left to itself (and is not named)."""
    arrived: queue.SimpleQueue[tuple[str, dict[str, Any] | Exception]] = queue.SimpleQueue()
    for host in hosts:
        threading.Thread(target=lambda host=host: arrived.put((host, ask(host))), daemon=True).start()
    deadline: float | None = None
    for _ in hosts:
        try:
            host, answer = arrived.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return
        if enough is not None and deadline is None and isinstance(answer, dict) and enough(answer):
            deadline = time.monotonic() + _OTHERS_S
        yield host, answer


def _unknown(what: str, answers: Answers, fix: str) -> VmferryError:
    """Return the error for something that nobody who answered knows."""
    where = ", ".join(sorted(answers.answers))
    if answers.silent:
        return Unreachable(
            f"{what} on {where}; {answers.silent_text()}",
            fix=f"make sure that {', '.join(sorted(answers.silent))} answers, then try again",
            retry=True,
        )
    return NotFound(f"{what} on any host ({where})", fix=fix)


def _rank(view: dict[str, Any]) -> tuple[int, bool]:
    """Order views of one guest: the newest epoch, and in it the owner's own."""
    return int(view["epoch"]), view["host"] == view["owner"]


def open_identity(where: Path) -> IdentityDirectory:
    """Return the operator's identity in a directory.

    Raises:
        NotFound: there is none.
    """
    from vmferry.pki.identity import IdentityDirectory

    identity = IdentityDirectory(where)
    if not identity.exists():
        raise NotFound(
            f"there is no operator's identity in {where}",
            fix="make one with `vmferry ca init` or `vmferry operator add`, or name its directory in VMFERRY_CONFIG",
        )
    return identity


def has_fleet() -> bool:
    """Tell whether this operator has an identity, and with it a fleet."""
    from vmferry.pki.identity import IdentityDirectory

    return IdentityDirectory(identity_directory()).exists()


def open_fleet(directory: Path | None = None) -> Fleet:
    """Return the fleet as the operator's identity directory has it.

    Raises:
        NotFound: there is no identity here.
        Denied: the certificate has expired.
    """
    import datetime as dt

    from vmferry.api.client import Endpoint
    from vmferry.pki.certificates import needs_renewal

    where = identity_directory() if directory is None else directory
    identity = open_identity(where)
    now = dt.datetime.now(dt.UTC)
    identity.check_valid(now)
    if needs_renewal(identity.certificate(), now):
        _renew(where)

    def endpoints() -> dict[str, Endpoint]:
        members = identity.membership().hosts
        return {m.name: Endpoint(m.name, m.address, m.port, m.identity.server_name) for m in members}

    def refresh(fleet: Fleet) -> dict[str, Endpoint]:
        from vmferry.pki.membership import SignedMembership

        for body in fleet.ask_all("/v1/membership").answers.values():
            with contextlib.suppress(Denied):  # older than ours, or not signed by our CA: ours stands
                identity.accept_membership(SignedMembership(body["document"], body["signature"]))
        return endpoints()

    return Fleet(endpoints(), identity.client_context(), refresh)


def _renew(directory: Path) -> None:
    """Renew the operator's certificate in time; when nobody renews now, the next command tries again."""
    from vmferry.api.fleet_commands import renew_operator

    with contextlib.suppress(VmferryError):
        renew_operator(directory)

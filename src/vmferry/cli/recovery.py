"""`vmferry recover`: look where guests really run, and end what is in doubt."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vmferry.cli.fleet import Answers, Fleet, has_fleet, open_fleet
from vmferry.cli.libvirt_hosts import load_hosts
from vmferry.cli.options import AsJson
from vmferry.cli.output import INTERRUPTED, print_json, say
from vmferry.core.errors import BadInput, InDoubt, NotFound, Unreachable, VmferryError

#: Agents ask each other and wait for QEMU.
RECOVER_S = 310.0


#: What stands for the owner where there is none by the nature of the thing.
_NOBODY = {"off": "nobody", "lost": "nobody", "moving": "libvirt moves it"}


def recover(
    guest: Annotated[str | None, typer.Argument(metavar="[GUEST]", help="Only this guest. Default: all.")] = None,
    *,
    fenced: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="You have made sure that this host is off and stays off until it is wiped."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell of every guest what runs where, what the journals say of it, and what is still open.

    Agents settle what they can by themselves; this waits a moment for them.

    With --fenced the word of a person ends a doubt: all guests that may run on that host are taken over, and GUEST only
    limits what is shown. Exit code 9 when a guest's owner is still not known.
    """
    domains = [] if fenced is not None else _recover_domains(guest, as_json=as_json)
    if domains and (guest is not None or not has_fleet()):
        _show(domains, Answers({}), as_json=as_json)
        _tell_doubt(domains)
        return
    try:
        fleet = open_fleet()
        answers = _fenced(fleet, fenced) if fenced is not None else _recover(fleet, guest)
    except VmferryError:
        if domains:  # done, and told only once
            _show(domains, Answers({}), as_json=as_json)
        raise
    findings = [
        {**finding, "host": host} for host, reply in sorted(answers.answers.items()) for finding in reply["findings"]
    ]
    findings += domains
    if guest is not None:
        findings = [finding for finding in findings if finding["guest"] == guest]
    if not findings and guest is not None and fenced is None:  # a domain whose move nobody here began
        try:
            findings = _domain(guest)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    _show(findings, answers, as_json=as_json)
    _tell_doubt(findings)


def _tell_doubt(findings: list[dict[str, Any]]) -> None:
    """Exit with a code of its own when a guest may be anybody's; one that is off is nobody's, and one moves."""
    certain = ("off", "lost", "moving")
    if any(finding["owner"] is None and finding.get("verdict") not in certain for finding in findings):
        raise typer.Exit(InDoubt.exit_code)


def _recover_domains(guest: str | None, *, as_json: bool) -> list[dict[str, Any]]:
    """Recover the moves of libvirt's domains that this operator began: of one, or of all.

    What was done before a Ctrl-C is shown all the same: some of it is told only once.
    """
    from vmferry.cli.libvirt_records import records

    findings: list[dict[str, Any]] = []
    try:
        for name in [guest] if guest is not None else records():
            findings += _recorded(name)
    except KeyboardInterrupt:
        if findings:
            _show(findings, Answers({}), as_json=as_json)
        raise typer.Exit(INTERRUPTED) from None
    return findings


def _recorded(name: str) -> list[dict[str, Any]]:
    """Recover a domain's move; one of which a record is kept and that cannot be judged is a finding, beside others."""
    from vmferry.cli.libvirt_records import hosts_that_move, records

    try:
        return _domain(name) if hosts_that_move(name) else []
    except VmferryError as error:
        if name not in records():
            raise
        return [
            {
                "guest": name,
                "host": "hosts of libvirt's",
                "found": error.what,
                "done": "nothing",
                "owner": None,
                "verdict": "held",
                "fix": error.fix,
            }
        ]


def _domain(name: str) -> list[dict[str, Any]]:
    from vmferry.cli import domain_recovery

    hosts = load_hosts()
    found = domain_recovery.recover(hosts, name) if hosts else None
    return [] if found is None else [found]


def _recover(fleet: Fleet, guest: str | None) -> Answers:
    """Ask every agent; those that do not know the guest have nothing to say about it."""
    answers = fleet.ask_all("/v1/recover", "POST", {"guest": guest} if guest else {}, time_limit_s=RECOVER_S)
    silent = {host: error for host, error in answers.silent.items() if not isinstance(error, NotFound)}
    return Answers(answers.answers, silent)


def _fenced(fleet: Fleet, host: str) -> Answers:
    """Tell all other agents that a host is off; refuses when it answers, since then it is not.

    Raises:
        NotFound: no such host.
        BadInput: the host's agent answers.
    """
    try:
        fleet.ask(host, "GET", "/v1/host", time_limit_s=5)
    except Unreachable:
        return fleet.ask_all("/v1/recover/fenced", "POST", {"host": host}, time_limit_s=RECOVER_S, without=host)
    except NotFound:
        raise
    except VmferryError as error:
        seen = error.what  # refused, late or broken: something is alive there
    else:
        seen = f"agent of {host} answers"
    raise BadInput(
        f"host {host} is not off: {seen}",
        fix=f"switch {host} off first; when it runs, `vmferry recover` without --fenced settles everything",
    )


def _show(findings: list[dict[str, Any]], answers: Answers, *, as_json: bool) -> None:
    if as_json:
        silent = {host: error.what for host, error in answers.silent.items()}
        print_json({"findings": findings, "silent": silent})
        return
    for finding in findings:
        owner = finding["owner"] or _NOBODY.get(finding.get("verdict", ""), "not known")
        print(f"{finding['guest']} ({finding['host']}): {finding['found']}; done: {finding['done']}; owner: {owner}")
        if finding.get("fix"):
            print(f"  {finding['fix']}")
    if not findings:
        print("nothing to recover")
    if answers.silent:
        say(f"warning: {answers.silent_text()}")

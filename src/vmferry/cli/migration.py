"""`vmferry check`, `migrate`, `watch`, `trace` and `cancel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import typer

from vmferry.cli.fleet import Fleet, open_fleet
from vmferry.cli.libvirt_hosts import LibvirtHost, load_hosts
from vmferry.cli.libvirt_records import hosts_that_move
from vmferry.cli.options import AsJson, GuestArgument
from vmferry.cli.output import INTERRUPTED, print_json, say
from vmferry.core.errors import BadInput, NotFound
from vmferry.core.ids import is_name

BLOCKED = 3
#: The one throttle that can be asked for by itself; the others are what policies use.
FORTY_WRITES = "40-writes"

DestinationArgument = Annotated[str, typer.Argument(metavar="HOST", help="The host to which the guest shall move.")]


PolicyOption = Annotated[
    str | None, typer.Option(help="Who decides when to switch over; see `vmferry policy list`. Default: vmferry.")
]

MaxGapOption = Annotated[
    str | None,
    typer.Option(help="Goal of the default policy: longest pause that the guest may see, e.g. 300ms. Default: 90ms."),
]

ThrottleOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="What may slow a guest that writes too fast: auto-converge (the default), 40-writes (from round 1,"
        " under any policy), any (40-writes when there is no end without, then auto-converge) or none.",
    ),
]

PostcopyOption = Annotated[
    bool,
    typer.Option(
        "--postcopy",
        help="Allow post-copy: it always arrives, and until its last page is there a QEMU that dies on either host is a"
        " lost guest.",
    ),
]

PlainOption = Annotated[bool, typer.Option("--plain", help="Do not encrypt the stream. Default: TLS (--encryption).")]

LinkOption = Annotated[
    str | None,
    typer.Option(
        metavar="tcp|fd|unix|rdma",
        help="How the stream travels: QEMU to QEMU over a port of its own (tcp, the default), or over a connection that"
        " the agents make on their stream port (fd), or over one such connection for each channel (unix), or from"
        " memory to memory by both hosts' RDMA devices (rdma; one channel, no post-copy, with --plain only).",
    ),
]

PipelineOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Send through commands of both hosts' agent.toml ([migration.pipelines.NAME]): one way, one channel, no"
        " post-copy; --plain unless they encrypt.",
    ),
]

EncryptionOption = Annotated[
    str | None,
    typer.Option(
        metavar="psk|x509",
        help="By what QEMU encrypts: a key made for this migration (psk, the default), or the certificates of both"
        " hosts (x509; migration.tls_dir of their agent.toml).",
    ),
]

CopyDisksOption = Annotated[
    bool,
    typer.Option(
        "--copy-disks",
        help="Copy disks that the two hosts do not share while the guest runs; what stays at the source is renamed.",
    ),
]

ChannelsOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, max=64, help="Send over N channels with a thread each (multifd). Default: one."),
]

CompressionOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Compress pages: zstd or zlib (over channels), auto (one of these or none, by a sample of the guest's"
        " pages), qpl, uadk, qatzip where both QEMUs have them, xbzrle (differences of pages sent again; one channel)"
        " or none (the default).",
    ),
]


DisksOption = Annotated[
    list[str] | None,
    typer.Option("--disk", metavar="TARGET", help="Copy this disk alone (vda), of a guest of libvirt; repeat it."),
]

LibvirtOption = Annotated[
    list[str] | None,
    typer.Option(
        "--libvirt", metavar="NAME=VALUE", help="What only libvirt has a word for (docs/libvirt.md); repeat it."
    ),
]

MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="WHAT:HERE=THERE",
        help="What a guest of libvirt finds under another name there: bridge, network, card, device, disk, listen.",
    ),
]

BandwidthOption = Annotated[
    str | None,
    typer.Option(help="Most that the stream may take, e.g. 1Gbit/s or 100MiB/s. Default: the link's speed."),
]


def check(  # noqa: PLR0913 - one for each option of the command
    guest: GuestArgument,
    destination: DestinationArgument,
    *,
    policy: PolicyOption = None,
    max_gap: MaxGapOption = None,
    throttle: ThrottleOption = None,
    postcopy: PostcopyOption = False,
    plain: PlainOption = False,
    link: LinkOption = None,
    channels: ChannelsOption = None,
    compression: CompressionOption = None,
    pipeline: PipelineOption = None,
    encryption: EncryptionOption = None,
    copy_disks: CopyDisksOption = False,
    disk: DisksOption = None,
    libvirt: LibvirtOption = None,
    renamed: MapOption = None,
    bandwidth: BandwidthOption = None,
    as_json: AsJson = False,
) -> None:
    """Tell everything that keeps a guest from moving, each with its fix, and what is promised; touches nothing.

    The exit code is 3 when something blocks.
    """
    from vmferry.cli.render.check import check_text

    options = _bandwidth(bandwidth) | _choice(policy, max_gap, None, throttle) | _postcopy(postcopy, None)
    options |= _stream(link, channels, compression, pipeline, encryption) | _disks(copy_disks)
    options |= _libvirts(disk, libvirt, renamed) | ({"plain": True} if plain else {})
    source, reply = _ask_check(guest, destination, options)
    if as_json:
        print_json(reply)
    else:
        print(check_text(guest, source, destination, reply))
    if reply["blockers"]:
        raise typer.Exit(BLOCKED)


def _ask_check(guest: str, destination: str, options: dict[str, object]) -> tuple[str, dict[str, Any]]:
    """Return where a guest is, and what its agent, or libvirt, says of its move."""
    hosts = load_hosts()
    if destination in hosts:
        from vmferry.cli import domain_moves

        reply = domain_moves.check(hosts, guest, destination, options)
        return str(reply["source"]), reply
    _refuse_libvirts(options)
    fleet = open_fleet()
    source = fleet.find_guest(guest)
    body = {"destination": destination, **({"options": options} if options else {})}
    return source, fleet.ask(source, "POST", f"/v1/guests/{guest}/check", body)


def migrate(  # noqa: PLR0913 - one for each option of the command
    guest: GuestArgument,
    destination: DestinationArgument,
    *,
    plain: PlainOption = False,
    bandwidth: BandwidthOption = None,
    downtime_limit: Annotated[
        str | None,
        typer.Option(
            help="Longest downtime-limit that the policy may give QEMU unless it forces the switchover, e.g. 300ms."
            " Default: the policy's own."
        ),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(help="Cancel and stay when pre-copy takes longer, under any policy, e.g. 10min. Default: never."),
    ] = None,
    policy: PolicyOption = None,
    max_gap: MaxGapOption = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            help="Goal of the default policy: have switched over by then, e.g. 60s; else post-copy where it is allowed,"
            " else --at-deadline. Default: none."
        ),
    ] = None,
    at_deadline: Annotated[
        str | None,
        typer.Option(
            metavar="cancel|switch",
            help="What happens at the deadline: cancel and stay, or switch over however long the guest stands still."
            " Default: cancel.",
        ),
    ] = None,
    throttle: ThrottleOption = None,
    postcopy: PostcopyOption = False,
    postcopy_after: Annotated[
        int | None,
        typer.Option(
            "--postcopy-after",
            metavar="N",
            min=1,
            help="Begin post-copy when round N begins (1: at once), under any policy; implies --postcopy.",
        ),
    ] = None,
    link: LinkOption = None,
    channels: ChannelsOption = None,
    compression: CompressionOption = None,
    pipeline: PipelineOption = None,
    encryption: EncryptionOption = None,
    copy_disks: CopyDisksOption = False,
    disk: DisksOption = None,
    libvirt: LibvirtOption = None,
    renamed: MapOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Only begin; print the hand-over's id.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move a running guest to another host and show how it goes. Ctrl-C only stops showing it."""
    options = _options(plain, bandwidth, downtime_limit, time_limit) | _choice(policy, max_gap, deadline, throttle)
    options |= _at_deadline(at_deadline) | _postcopy(postcopy, postcopy_after)
    options |= _stream(link, channels, compression, pipeline, encryption) | _disks(copy_disks)
    options |= _libvirts(disk, libvirt, renamed)
    if destination in (hosts := load_hosts()):
        from vmferry.cli import domain_moves

        if detach:
            raise BadInput("--detach: nobody but this command steers a move of libvirt's", fix="leave it out")
        raise typer.Exit(domain_moves.migrate(hosts, guest, destination, options, as_json=as_json))
    _refuse_libvirts(options)
    fleet = open_fleet()
    source = fleet.find_guest(guest)
    try:
        reply = fleet.ask(
            source, "POST", f"/v1/guests/{guest}/migrate", {"destination": destination, "options": options}
        )
    except KeyboardInterrupt:
        say("\ninterrupted before the agent answered; whether it began: `vmferry handover list`")
        raise typer.Exit(INTERRUPTED) from None
    handover = reply["handover"]
    if not detach:
        _follow(fleet, _view(handover, guest, source, destination), as_json=as_json)
    elif as_json:
        print_json(reply)
    else:
        print(handover)
        say(f"migration of {guest} to {destination} goes on; watch it with `vmferry watch {handover}`")


def _options(
    plain: bool, bandwidth: str | None, downtime_limit: str | None, time_limit: str | None
) -> dict[str, object]:
    """Return the options of the request; what is not given is left to the agent."""
    from vmferry.cli.quantities import parse_duration

    options: dict[str, object] = {"plain": plain, **_bandwidth(bandwidth)}
    if downtime_limit is not None:
        options["downtime_limit_ms"] = parse_duration(downtime_limit, "--downtime-limit", least_ms=1.0, most_ms=60_000)
    if time_limit is not None:
        options["time_limit_s"] = parse_duration(time_limit, "--time-limit", most_ms=1e10) / 1000
    return options


def _bandwidth(most: str | None) -> dict[str, object]:
    from vmferry.cli.quantities import parse_rate

    return {} if most is None else {"max_bandwidth": parse_rate(most, "--bandwidth")}


def _choice(policy: str | None, max_gap: str | None, deadline: str | None, throttle: str | None) -> dict[str, object]:
    """Return what was said of the policy; what is not given is left to the agent."""
    from vmferry.cli.quantities import parse_duration

    options: dict[str, object] = {}
    if policy is not None:
        options["policy"] = policy
    if max_gap is not None:
        options["max_gap_ms"] = parse_duration(max_gap, "--max-gap", most_ms=2e6)
    if deadline is not None:
        options["deadline_ms"] = parse_duration(deadline, "--deadline", most_ms=1e10)
    if throttle is not None:
        from vmferry.core.convergence import Throttle  # all policies: 50 ms

        kinds = [*map(str, Throttle), "any", "none"]
        if throttle not in kinds:
            raise BadInput(f"--throttle {throttle!r} is none of the brakes", fix=f"take one of {', '.join(kinds)}")
        options["throttle"] = throttle
    return options


def _at_deadline(wished: str | None) -> dict[str, object]:
    """Return the option of the request; not given is left to the agent."""
    if wished is None:
        return {}
    kinds = ("cancel", "switch")
    if wished not in kinds:
        raise BadInput(f"--at-deadline {wished!r} is nothing that can happen", fix=f"take one of {', '.join(kinds)}")
    return {"at_deadline": wished}


def _postcopy(allowed: bool, after: int | None) -> dict[str, object]:
    """Return the options of the request that concern post-copy; whoever says when has allowed it."""
    if after is not None:
        return {"postcopy": True, "postcopy_after": after}
    return {"postcopy": True} if allowed else {}


def _disks(copied: bool) -> dict[str, object]:
    return {"copy_disks": True} if copied else {}


def _libvirts(disks: list[str] | None, words: list[str] | None, maps: list[str] | None) -> dict[str, object]:
    """Return what only guests of libvirt have."""
    given = {"disks": disks, "libvirt": words, "maps": maps}
    return {name: tuple(value) for name, value in given.items() if value}


def _refuse_libvirts(options: dict[str, object]) -> None:
    from vmferry.cli.domain_terms import refuse_libvirts

    refuse_libvirts(options)


def _stream(
    link: str | None, channels: int | None, compression: str | None, pipeline: str | None, encryption: str | None
) -> dict[str, object]:
    """Return what was said of the stream; what is not given is left to the agent."""
    from vmferry.core.capabilities import LINKS, Compression, Encryption

    if link is not None and pipeline is not None:
        raise BadInput("--pipeline takes the place of --link", fix="leave one of them out")
    given = {"channels": channels, "pipeline": pipeline}
    options: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    for name, word, words in (
        ("link", link, LINKS),
        ("compression", compression, tuple(Compression)),
        ("encryption", encryption, tuple(Encryption)),
    ):
        if word is not None and word not in words:
            raise BadInput(f"--{name} {word!r} is not known", fix=f"take one of {', '.join(words)}")
        if word is not None:
            options[name] = word
    return options


def _view(handover: str, guest: str, source: str, destination: str) -> dict[str, Any]:
    return {"handover": handover, "guest": guest, "source": source, "destination": destination, "asked": source}


WordArgument = Annotated[
    str | None,
    typer.Argument(metavar="[HANDOVER]", help="Id of the hand-over, or its guest. Default: the one under way."),
]


def watch(word: WordArgument = None, *, as_json: AsJson = False) -> None:
    """Show a hand-over from its start, under way or over; of a libvirt domain, from now on. Ctrl-C only stops that."""
    if word is not None and (hosts := hosts_that_move(word)):
        _watch_domain(hosts, word, as_json=as_json)
    fleet = open_fleet()
    try:
        found = fleet.find_handover(word)
    except NotFound:
        if word is not None and (hosts := load_hosts()):
            _watch_domain(hosts, word, as_json=as_json)
        raise
    _follow(fleet, found, as_json=as_json)


def _watch_domain(hosts: Mapping[str, LibvirtHost], word: str, *, as_json: bool) -> NoReturn:
    from vmferry.cli import domain_recovery

    code = domain_recovery.watch(hosts, word, as_json=as_json)
    if code is None:
        raise NotFound(f"no host moves a guest or domain {word}", fix=f"`vmferry recover {word}` tells where it runs")
    raise typer.Exit(code)


def trace(
    word: Annotated[str, typer.Argument(metavar="HANDOVER", help="Id of the hand-over, or its guest (the newest).")],
) -> None:
    """Print what the policy of a hand-over saw and ordered, as JSON lines; `vmferry policy replay` takes them."""
    fleet = open_fleet()
    found = fleet.find_handover(word)
    for line in fleet.stream(found["source"], f"/v1/handovers/{found['handover']}/trace"):
        print_json(line)


def _follow(fleet: Fleet, view: dict[str, Any], *, as_json: bool) -> None:
    from vmferry.cli.following import follow

    raise typer.Exit(follow(fleet, view, as_json=as_json))


def bandwidth(
    word: Annotated[str, typer.Argument(metavar="GUEST|HANDOVER", help="The guest, or the id of the hand-over.")],
    rate: Annotated[
        str, typer.Argument(metavar="RATE|link", help="E.g. 500Mbit/s or 100MiB/s; link: as much as the link gives.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Change what the stream of a hand-over under way may take. Its time and its downtime change with it."""
    from vmferry.cli.quantities import parse_rate

    body = {"max_bandwidth": None if rate == "link" else parse_rate(rate, "RATE")}
    fleet = open_fleet()
    found = fleet.find_handover(word, unfinished=True)
    reply = fleet.ask(found["source"], "POST", f"/v1/handovers/{found['handover']}/bandwidth", body, time_limit_s=130)
    if as_json:
        print_json(reply)
    else:
        print(f"hand-over {found['handover']} of {found['guest']}: {rate}")


def cancel(
    word: Annotated[str, typer.Argument(metavar="GUEST|HANDOVER", help="The guest, or the id of the hand-over.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Give a hand-over up before its commit, or a save; the guest runs on where it is."""
    if hosts := hosts_that_move(word):
        _cancel_domain(hosts, word, as_json=as_json)
        return
    fleet = open_fleet()
    try:
        found = fleet.find_handover(word, unfinished=True)
    except NotFound:
        if not _cancel_save(fleet, word, as_json=as_json):
            if not (hosts := load_hosts()):
                raise
            _cancel_domain(hosts, word, as_json=as_json)
        return
    reply = fleet.ask(found["asked"], "POST", f"/v1/handovers/{found['handover']}/cancel", {}, time_limit_s=130)
    if as_json:
        print_json(reply)
    else:
        print(
            f"hand-over {found['handover']} of {found['guest']}: {reply['state']};"
            f" owner {reply['owner'] or 'not known'}"
        )


def _cancel_domain(hosts: Mapping[str, LibvirtHost], word: str, *, as_json: bool) -> None:
    from vmferry.cli import domain_recovery

    found = domain_recovery.cancel(hosts, word)
    if found is None:
        raise NotFound(f"no host moves a guest or domain {word}", fix=f"`vmferry recover {word}` tells where it runs")
    if as_json:
        print_json(found)
    else:
        print(f"move of {word}: {found['done']}; {found['found']}; owner {found['owner'] or 'not known'}")


def _cancel_save(fleet: Fleet, word: str, *, as_json: bool) -> bool:
    """Give the save of a guest up; tell whether there was one."""
    views = fleet.guests(word)[0] if is_name(word) else []
    saved = next((view for view in views if (view["busy_with"] or "").startswith("save ")), None)
    if saved is None:
        return False
    reply = fleet.ask(saved["host"], "POST", f"/v1/guests/{word}/cancel-save", {}, time_limit_s=130)
    if as_json:
        print_json(reply)
    else:
        print(f"guest {word} goes on on {saved['host']}: {reply['run_state']}")
    return True

"""Hosts of libvirt's that this operator knows by name: they have no agent, so nobody else keeps a list of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmferry.cli.fleet import identity_directory
from vmferry.core.errors import BadInput, GuestBusy, NotFound
from vmferry.core.ids import is_name

_FILE = "libvirt.toml"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LibvirtHost:
    """One host.

    Attributes:
        name: here.
        uri: where its daemon is, from here.
        peer_uri: where it is from the other hosts.
        lock_manager: what its operator says that it has; None: nothing was said, and libvirt does not tell.
    """

    name: str
    uri: str
    peer_uri: str
    lock_manager: str | None = None


def load_hosts(directory: Path | None = None) -> dict[str, LibvirtHost]:
    """Return the hosts by name; none where there is no list.

    Raises:
        BadInput: the list is none, or a URI in it is none that is used here.
    """
    path = (directory or identity_directory()) / _FILE
    if not path.exists():  # most operators have none: nothing is imported for it
        return {}
    import tomllib

    try:
        with path.open("rb") as file:
            found = tomllib.loads(file.read(_MOST_BYTES).decode())
    except (OSError, ValueError) as error:
        raise BadInput(f"list of libvirt hosts in {path} cannot be read: {error}") from error
    return {name: _host(path, name, row) for name, row in found.items()}


def add_host(
    name: str, uri: str, peer_uri: str | None, directory: Path | None = None, lock_manager: str | None = None
) -> LibvirtHost:
    """Add a host to the list, or say anew where it is.

    Raises:
        BadInput: that is no name, no URI that is used here, or no lock manager; nothing has changed.
    """
    if not is_name(name):
        raise BadInput(f"host name {name!r} is none", fix="use lower-case letters, digits and -")
    added = LibvirtHost(name, uri, peer_uri or uri, lock_manager)
    _check(added)
    _write({**load_hosts(directory), name: added}, directory or identity_directory())
    return added


def remove_host(name: str, directory: Path | None = None, *, force: bool = False) -> None:
    """Take a host from the list; its domains are not touched.

    Args:
        name: of the host.
        directory: of the operator.
        force: also when a move is not known to be over that only this host can tell of.

    Raises:
        NotFound: it is not in the list.
        GuestBusy: a move from or to it is not known to be over.
    """
    from vmferry.cli.libvirt_records import moves_of

    hosts = load_hosts(directory)
    if name not in hosts:
        raise NotFound(f"libvirt host {name} is not known", fix="see `vmferry host list`")
    if not force and (guests := moves_of(name, directory)):
        raise GuestBusy(
            f"libvirt host {name} is needed to tell where {', '.join(guests)} runs: the move is not known to be over",
            fix=f"`vmferry recover {guests[0]}` first; a host that never comes back goes with --force",
        )
    _write({other: host for other, host in hosts.items() if other != name}, directory or identity_directory())


def _host(path: Path, name: str, row: object) -> LibvirtHost:
    uris = [row.get(key) for key in ("uri", "peer_uri")] if isinstance(row, dict) else []
    if not is_name(name) or not uris or not all(isinstance(uri, str) for uri in uris):
        raise BadInput(f"list of libvirt hosts in {path} is spoilt at {name!r}", fix="correct it, or remove that table")
    uri, peer_uri = map(str, uris)
    said = row.get("lock_manager") if isinstance(row, dict) else None
    host = LibvirtHost(name, uri, peer_uri, None if said is None else str(said))
    _check(host)
    return host


def _check(host: LibvirtHost) -> None:
    from vmferry.libvirt.locks import LOCK_MANAGERS
    from vmferry.libvirt.uri import checked_uri

    if host.lock_manager not in {None, *LOCK_MANAGERS}:
        kinds = ", ".join(LOCK_MANAGERS)
        raise BadInput(f"lock manager {host.lock_manager!r} of host {host.name} is none", fix=f"take one of {kinds}")

    for uri in (host.uri, host.peer_uri):
        checked_uri(uri)


def _row(host: LibvirtHost) -> dict[str, str]:
    said = {} if host.lock_manager is None else {"lock_manager": host.lock_manager}
    return {"uri": host.uri, "peer_uri": host.peer_uri, **said}


def _write(hosts: Mapping[str, LibvirtHost], directory: Path) -> None:
    """Replace the list in one step."""
    import tomli_w

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    rows = {host.name: _row(host) for host in hosts.values()}
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix=f".{_FILE}-", delete=False, encoding="utf-8") as file:
        file.write(tomli_w.dumps(rows))
    Path(file.name).replace(directory / _FILE)

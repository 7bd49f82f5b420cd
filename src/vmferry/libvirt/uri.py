"""libvirt's addresses: which of them are used, and what may stand in them.

A URI can make libvirt start programs (`?command=`, `qemu+ext`) or trust anybody (`?no_verify=1`), and one may come over
the API. So only what is listed here is let through.

Source: libvirt docs/uri.rst, docs/remote.html (9.0).
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

from vmferry.core.errors import BadInput

#: The daemon of this host.
LOCAL = "qemu:///system"
#: How a daemon is reached; `test` is libvirt's own imitation in this process.
SCHEMES = ("qemu", "qemu+unix", "qemu+ssh", "qemu+tls", "qemu+tcp", "test")
#: Parameters that neither start a program nor take a check away.
PARAMETERS = frozenset({"keyfile", "mode", "no_tty", "pkipath", "proxy", "socket"})

_FORMS = "qemu:///system, qemu+ssh://HOST/system, qemu+tls://HOST/system or qemu+tcp://HOST/system"
_OF_A_HOST = ("qemu+ssh", "qemu+tls", "qemu+tcp")
#: A name or an address; what begins with - would be an option to ssh.
_HOST = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:\[\]_-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
#: What no URI needs, and what two readers of one take for different things: to libvirt a ; ends a parameter.
_ODD = re.compile(r"[^!-~]|[;#\\]")


def checked_uri(text: str) -> str:
    """Return a libvirt daemon's address as libvirt takes it; with ssh it never asks at the terminal.

    Raises:
        BadInput: it is none, its scheme is not one of `SCHEMES`, or it has a parameter that is not let through.
    """
    parts = _split(text)
    if parts.scheme not in SCHEMES:
        raise BadInput(f"libvirt at {text!r}: scheme {parts.scheme!r} is not known here", fix=f"name {_FORMS}")
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    if wrong := sorted(parameters.keys() - PARAMETERS):
        raise BadInput(
            f"libvirt at {text!r}: {', '.join(wrong)} is not let through: it may start programs or take checks away",
            fix=f"leave it out; there are {', '.join(sorted(PARAMETERS))}",
        )
    host, user = parts.hostname, parts.username
    if parts.password is not None:
        raise BadInput("a libvirt URI holds a password, which every process of the host can read", fix="use an ssh key")
    is_wrong = (host and not _HOST.fullmatch(host)) or (user and not _USER.fullmatch(user))
    if is_wrong or (parts.scheme in _OF_A_HOST) != bool(host):
        raise BadInput(f"libvirt at {text!r}: no host, or one that is none", fix=f"name {_FORMS}")
    if parts.scheme != "qemu+ssh" or "no_tty" in parameters:
        return text
    return f"{text}{'&' if parts.query else '?'}no_tty=1"


def stream_uri(text: str) -> str | None:
    """Return where QEMU sends to, for a daemon's address: the same host; None: it is this host's own daemon.

    libvirt by itself would take what the destination calls itself, which the source may not be able to resolve.
    """
    host = _split(text).hostname
    return None if not host else f"tcp://[{host}]" if ":" in host else f"tcp://{host}"


def _split(text: str) -> SplitResult:
    if found := _ODD.search(text):
        raise BadInput(f"libvirt at {text!r}: {found.group()!r} is in no such address", fix=f"name {_FORMS}")
    try:
        parts = urlsplit(text)
        _ = parts.port  # read, so that a wrong one is found
    except ValueError as error:
        raise BadInput(f"libvirt at {text!r}: {error}", fix=f"name {_FORMS}") from error
    return parts

"""What libvirt says when something fails, in our words: which error of ours it is, and what to do.

Pure: a number and a sentence in, an error out. Where libvirt has one number for everything that goes wrong on the way
to a daemon (38, VIR_ERR_SYSTEM_ERROR) its sentence decides; each was seen with libvirt 9.0 (tests/libvirt).

Source: libvirt include/libvirt/virterror.h.
"""

from __future__ import annotations

import re

from vmferry.core.errors import BadInput, Broken, Denied, NotFound, Refused, TimedOut, Unreachable, VmferryError

_Row = tuple[type[VmferryError], str]

_CREDENTIALS = "give this user access there: an ssh key, a client certificate, or membership of the group libvirt"
_DAEMON = "check that libvirtd (or virtqemud) runs there and that this user may open its socket"

#: number of the error -> (ours, what to do)
_BY_CODE: dict[int, _Row] = {
    3: (Refused, "a newer libvirt there may know it"),  # NO_SUPPORT
    8: (BadInput, "correct what libvirt does not take, by its own words"),  # INVALID_ARG
    29: (Denied, "connect without read-only"),  # OPERATION_DENIED
    42: (NotFound, "`virsh list --all` shows which domains there are"),  # NO_DOMAIN
    45: (Denied, _CREDENTIALS),  # AUTH_FAILED
    55: (Refused, "look at the domain's state: it is not one in which this is possible"),  # OPERATION_INVALID
    68: (TimedOut, "another operation holds the domain; try again when it is done"),  # OPERATION_TIMEOUT
    78: (Broken, "somebody gave the job up (virsh domjobabort): move the domain again"),  # OPERATION_ABORTED
    79: (Denied, _CREDENTIALS),  # AUTH_CANCELLED
    # MIGRATE_UNSAFE; libvirt knows shared file systems by their kind
    81: (Refused, "bring the disks to storage that both hosts mount and give them cache='none', or have them copied"),
    84: (Refused, "a newer libvirt there may know it"),  # OPERATION_UNSUPPORTED
    86: (TimedOut, "look after the agent in the guest"),  # AGENT_UNRESPONSIVE
    88: (Denied, "ask who runs the host: its access rules forbid it"),  # ACCESS_DENIED
    94: (Denied, _CREDENTIALS),  # AUTH_UNAVAILABLE
}
#: words of the sentence -> as above; the first that fits, and only where the number says nothing
_BY_WORDS: tuple[tuple[re.Pattern[str], _Row], ...] = tuple(
    (re.compile(words, re.IGNORECASE), row)
    for words, row in (
        (
            "cannot access storage file",
            (Broken, "make the image reachable at the destination by the same path, or have it copied there"),
        ),
        (
            "already (exists|defined) with uuid|already exists|is already defined",
            (Refused, "rename or undefine one of the two: a host has each name and each UUID once"),
        ),
        (
            "verify peer's certificate",
            (
                Denied,
                "compare the CA's certificate that is trusted here, and the name in the address, with the daemon's",
            ),
        ),
        (
            "sasl|no authentication callback",
            (
                Denied,
                "the daemon asks for a password (SASL), which nothing here has: reach it by ssh or certificates",
            ),
        ),
        (
            "host key verification failed",
            (Denied, "compare the host's key, then accept it: `ssh HOST` as the user who runs this"),
        ),
        (r"permission denied \(|authentication (failed|error|required)", (Denied, _CREDENTIALS)),
        (
            "(ca|server|client|public|private) (certificate|key)|certificate (is|has|failed)|tls handshake",
            (Denied, "put the CA's certificate and a client certificate with its key where libvirt looks (pkipath)"),
        ),
        ("permission denied", (Denied, _CREDENTIALS)),
        ("virt-ssh-helper|nc: |netcat", (Broken, "install libvirt-daemon (virt-ssh-helper) or netcat-openbsd there")),
        ("cannot find 'ssh'", (Broken, "install openssh-client")),
        ("unable to resolve|could not resolve|name or service", (Unreachable, "look at the host's name")),
        (
            "failed to connect|unable to connect|cannot (recv|write)|connection (refused|reset)|end of file|is closed",
            (Unreachable, _DAEMON),
        ),
        (
            "keepalive timeout",
            (
                Unreachable,
                "look after libvirtd there, and after the network on the way: it has answered nothing for long",
            ),
        ),
    )
)
#: INTERNAL_ERROR, NO_CONNECT, INVALID_CONN, OPERATION_FAILED, SYSTEM_ERROR, RPC, GNUTLS, AUTH_FAILED
_UNSPECIFIC = frozenset({1, 5, 6, 9, 38, 39, 40, 45})


def translate(code: int, message: str, what: str) -> VmferryError:
    """Return what an error of libvirt is here.

    Args:
        code: libvirt's number of it.
        message: libvirt's sentence.
        what: what was asked, of which domain, and at which URI.
    """
    kind, fix = _row(code, message)
    text = " ".join(message.split()) or f"libvirt error {code}"
    return kind(f"{what}: {text}", fix=fix, retry=kind in {Unreachable, TimedOut})


def _row(code: int, message: str) -> _Row:
    if code in _UNSPECIFIC:
        for words, row in _BY_WORDS:
            if words.search(message):
                return row
    return _BY_CODE.get(code, (Broken, "look into the log of libvirtd there"))

"""A stream that is to be encrypted by certificates: both hosts have them, they are good, and are believed."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.errors import Blocker

#: What QEMU needs for it, as it calls them.
OBJECTS = frozenset({"tls-creds-x509", "authz-simple"})
_WITHOUT = ", or move it without --encryption x509"


def check_certificates(case: Case) -> Iterator[Blocker]:
    """Both hosts can show a certificate that the other one believes; nothing is asked when no certificate is used.

    What the destination thinks of the source's is told when it reserves: it depends on what was revoked there.
    """
    if not case.stream.by_certificates:
        return
    for host in (case.source, case.destination):
        if missing := OBJECTS - host.qemu.objects:
            yield Blocker(
                "stream.qemu-without-certificates",
                f"QEMU on {host.name} cannot encrypt by certificates: it has no {' and no '.join(sorted(missing))}",
                f"install a QEMU that is built with GnuTLS on {host.name}{_WITHOUT}",
            )
        if host.certificates is None:
            yield Blocker(
                "stream.certificates-missing",
                f"Host {host.name} has no certificates for streams",
                f"write tls_dir under [migration] into its agent.toml and restart the agent (guests run on){_WITHOUT}",
            )
        else:
            yield from host.certificates.problems
    yield from case.distrusted

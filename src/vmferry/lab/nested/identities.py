"""Identities of a fleet in nested hosts, made here: on an emulated processor the enrolment alone takes half a minute.

What the hosts get is what enrolling them one after the other would have left; how that is done is tested elsewhere.
"""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vmferry.agent.config import DEFAULT_PORT
from vmferry.api.fleet_commands import init_ca
from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import HostMember


def make_identities(addresses: Mapping[str, str]) -> dict[str, str]:
    """Return what each host is to unpack in its folder, as base64: `state/identity`, and on the first host the CA.

    The first host has the operator, too, in `operator`.

    Args:
        addresses: of the hosts, by their names.
    """
    with TemporaryDirectory() as made:
        folder, first = Path(made), next(iter(addresses))
        ca, operator = folder / first / "state" / "ca", folder / first / "operator"
        ca.parent.mkdir(parents=True, mode=0o700)
        init_ca(ca, operator)
        authority = Authority.open(ca)
        members = [HostMember(name, ip, DEFAULT_PORT, certs.make_enrolment()) for name, ip in addresses.items()]
        membership = replace(authority.membership(), authority=first)
        for member in members:
            membership = membership.with_host(member)
        signed = authority.publish(membership)
        IdentityDirectory(operator).accept_membership(signed)
        for member in members:
            key = certs.make_key()
            certificate = authority.issue(member.identity, certs.make_request(key), membership)
            directory = folder / member.name / "state" / "identity"
            IdentityDirectory(directory).save(key, certificate, authority.certificate, signed)
        return {name: _packed(folder / name) for name in addresses}


def _packed(folder: Path) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, ".")
    return base64.encodebytes(packed.getvalue()).decode()

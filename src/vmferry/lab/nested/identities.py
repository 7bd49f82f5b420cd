"""Identities of a fleet in nested hosts, made here: on an emulated processor the enrolment alone takes half a minute.

What the hosts get is what enrolling them one after the other would have left; how that is done is tested elsewhere. The
operator is on this machine, and has the hosts' agents at ports of its loopback.
"""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vmferry.agent.config import DEFAULT_PORT
from vmferry.api.fleet_commands import init_ca
from vmferry.lab.nested.host import HostPlan
from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import HostMember, sign


def make_identities(plans: Sequence[HostPlan], operator: Path) -> dict[str, str]:
    """Write the operator's identity, and return what each host is to unpack in its folder, as base64.

    That is `state/identity`, and `state/ca` on the first host.

    Args:
        plans: of the hosts, with ports for the operator.
        operator: where the operator's identity will be.
    """
    with TemporaryDirectory() as made:
        folder = Path(made)
        ca = folder / plans[0].name / "state" / "ca"
        ca.parent.mkdir(parents=True, mode=0o700)
        init_ca(ca, operator)
        authority = Authority.open(ca)
        members = [HostMember(plan.name, plan.ip, DEFAULT_PORT, certs.make_enrolment()) for plan in plans]
        membership = seen = replace(authority.membership(), authority=plans[0].name)
        for plan, member in zip(plans, members, strict=True):
            membership = membership.with_host(member)
            seen = seen.with_host(replace(member, address="127.0.0.1", port=plan.operator_port or DEFAULT_PORT))
        signed = authority.publish(membership)
        IdentityDirectory(operator).accept_membership(sign(seen, authority.key))
        for member in members:
            key = certs.make_key()
            certificate = authority.issue(member.identity, certs.make_request(key), membership)
            directory = folder / member.name / "state" / "identity"
            IdentityDirectory(directory).save(key, certificate, authority.certificate, signed)
        return {plan.name: _packed(folder / plan.name) for plan in plans}


def _packed(folder: Path) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, ".")
    return base64.encodebytes(packed.getvalue()).decode()

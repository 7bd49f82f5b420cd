"""All policies by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vmferry.core.convergence.article import Article
from vmferry.core.convergence.facts import Description, Goal
from vmferry.core.convergence.kubevirt import Kubevirt
from vmferry.core.convergence.kubevirt_stall import KubevirtStall, KubevirtStallStrict
from vmferry.core.convergence.kvm_2007 import Kvm2007
from vmferry.core.convergence.nova import Nova, NovaForceComplete
from vmferry.core.convergence.ovirt import Ovirt, OvirtPostcopy, OvirtSuspend, OvirtVeryLarge
from vmferry.core.convergence.policy import Policy
from vmferry.core.convergence.proxmox import Proxmox
from vmferry.core.convergence.qemu import Qemu
from vmferry.core.convergence.vmferry import Vmferry
from vmferry.core.convergence.xen import Xen30, Xen30DefaultBuild
from vmferry.core.errors import NotFound

DEFAULT = "vmferry"

_ALL: tuple[type[Policy], ...] = (
    Vmferry,
    Article,
    Kvm2007,
    Xen30,
    Xen30DefaultBuild,
    Qemu,
    Nova,
    NovaForceComplete,
    Ovirt,
    OvirtPostcopy,
    OvirtSuspend,
    OvirtVeryLarge,
    Proxmox,
    Kubevirt,
    KubevirtStall,
    KubevirtStallStrict,
)
#: Names that people know a policy by elsewhere.
_ALIASES = {"ovirt-minimal-downtime": "ovirt", "ovirt-suspend-workload": "ovirt-suspend", "libvirt": "qemu"}
POLICIES: Mapping[str, type[Policy]] = MappingProxyType({kind.description.name: kind for kind in _ALL})


def find(name: str) -> type[Policy]:
    """Return the policy of this name; a variant may be written `ovirt:suspend` or `ovirt-suspend`.

    Raises:
        NotFound: there is none; the names there are, are told.
    """
    plain = name.replace(":", "-")
    kind = POLICIES.get(_ALIASES.get(plain, plain))
    if kind is None:
        raise NotFound(f"there is no policy {name!r}", fix=f"choose one of {', '.join(POLICIES)}")
    return kind


def make_policy(name: str, goal: Goal) -> Policy:
    """Return a new policy of this name, for one migration.

    Raises:
        NotFound: there is none; the names there are, are told.
    """
    return find(name)(goal)


def describe(name: str) -> Description:
    """Return what `vmferry policy show` tells; raises as `find`."""
    return find(name).description

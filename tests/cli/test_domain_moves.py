"""`check` of a libvirt domain: everything that was asked for is looked at, on libvirt's own imitation of two hosts."""

from __future__ import annotations

from typing import Any

import pytest

from vmferry.cli.domain_moves import check
from vmferry.cli.libvirt_hosts import LibvirtHost
from vmferry.core.errors import BadInput

IMITATION = "test:///default"


def hosts(here: str | None = None, there: str | None = None) -> dict[str, LibvirtHost]:
    """Return two hosts with what was said of their lock managers."""
    return {
        "host-a": LibvirtHost("host-a", IMITATION, IMITATION, here),
        "host-b": LibvirtHost("host-b", IMITATION, IMITATION, there),
    }


def codes(reply: dict[str, Any]) -> set[str]:
    """Return what blocks, without what the imitation cannot run at all."""
    found = {blocker["code"] for blocker in reply["blockers"]}
    return found - {"accelerator.differs", "machine.missing", "identity.runs-there"}


def test_all_that_was_asked_for_is_judged_at_once() -> None:
    """A name that the domain does not have, a disk that there is not, a word that does nothing, two lock managers."""
    options = {
        "plain": True,
        "disks": ("vdx",),
        "maps": ("bridge:br0=br1",),
        "libvirt": ("disks_port=49300", "undefine=no"),
    }
    reply = check(hosts("lockd", "none"), "test", "host-b", options)
    assert reply["source"] == "host-a"
    assert codes(reply) == {"map.nothing", "disk.unknown", "libvirt.idle", "lock.differs"}
    assert reply["guarantee"] is None


def test_nothing_of_it_blocks_where_nothing_of_it_was_asked_for() -> None:
    """Whether the daemons reach each other is not seen; a flow that was asked for leaves nothing to see."""
    reply = check(hosts(), "test", "host-b", {"plain": True, "throttle": "auto-converge"})
    assert codes(reply) == set()
    copied = check(hosts(), "test", "host-b", {"plain": True, "copy_disks": True})  # its disk is in no pool
    assert codes(copied) == {"disk.no-pool"}
    assert any("whether libvirt on host-a reaches test:///default" in sentence for sentence in reply["left_out"])
    direct = check(hosts(), "test", "host-b", {"plain": True, "libvirt": ("flow=direct",)})
    assert not any("reaches" in sentence for sentence in direct["left_out"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"throttle": "40-writes"}, "auto-converge or none"),
        ({"time_limit_s": 60.0}, "--time-limit"),
        ({"libvirt": ("flow=sideways",)}, "p2p or direct"),
        ({"maps": ("vlan:1=2",)}, "WHAT:HERE=THERE"),
    ],
)
def test_what_libvirts_guests_cannot_have(options: dict[str, Any], told: str) -> None:
    """It is told before anything is judged."""
    with pytest.raises(BadInput) as caught:
        check(hosts(), "test", "host-b", {"plain": True, **options})
    assert told in str(caught.value)

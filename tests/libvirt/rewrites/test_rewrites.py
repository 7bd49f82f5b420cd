"""Each rewrite does what it is for."""

from __future__ import annotations

import pytest

from vmferry.core.errors import BadInput
from vmferry.core.pci import PciAddress
from vmferry.libvirt.rewrites import (
    disable_features,
    name_model,
    replace_bridges,
    replace_cards,
    replace_devices,
    replace_disks,
    replace_listen,
    replace_networks,
    set_emulator,
)
from vmferry.libvirt.rewrites.renaming import parse_renaming

HERE, THERE = PciAddress(0, 3, 0x10, 0), PciAddress(0, 5, 0x10, 2)
DOMAIN = f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>web-7</name>
<cpu mode='host-passthrough'><topology sockets='1' cores='2' threads='1'/><feature policy='require' name='avx'/></cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file'><source file='/a/web-7.qcow2'/><backingStore type='file'><source file='/a/base.qcow2'/></backingStore>
</disk>
<interface type='bridge'><source bridge='br0'/></interface>
<interface type='direct'><source dev='eth0'/></interface>
<interface type='network'><source network='lan' portid='1' bridge='br0'/></interface>
<interface type='hostdev'><mac address='52:54:00:00:00:09'/><source>{HERE.xml}
</source><teaming type='transient' persistent='ua-standby'/><address type='pci' bus='0x03' slot='0x10' function='0'/>
</interface>
<hostdev mode='subsystem' type='pci'><source>{HERE.xml}</source></hostdev>
<hostdev mode='subsystem' type='usb'><source><address bus='3' device='16'/></source></hostdev>
<graphics type='vnc' listen='10.0.0.1'><listen type='address' address='10.0.0.1'/></graphics></devices>
<qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>"""


def test_devices_are_the_destinations() -> None:
    """Both kinds of elements, and only the host's end: the guest's own bus, MAC and teaming stay."""
    changed = replace_devices(DOMAIN, {HERE: THERE})
    assert changed.count('bus="0x05" slot="0x10" function="0x2"') == 2
    assert '<teaming type="transient" persistent="ua-standby"' in changed
    assert '<address type="pci" bus="0x03" slot="0x10" function="0" />' in changed
    assert '<address bus="3" device="16" />' in changed
    assert 'address="52:54:00:00:00:09"' in changed


def test_names_of_the_host() -> None:
    """A bridge is not taken for a network's, and what this host made of a network does not go along."""
    assert '<source bridge="br1" />' in replace_bridges(DOMAIN, {"br0": "br1"})
    assert 'network="lan" portid="1" bridge="br0"' in replace_bridges(DOMAIN, {"br0": "br1"})
    assert '<source network="lan2" />' in replace_networks(DOMAIN, {"lan": "lan2"})
    assert '<source dev="eth1" />' in replace_cards(DOMAIN, {"eth0": "eth1"})


def test_images_and_what_they_stand_on() -> None:
    """The whole chain has its path."""
    changed = replace_disks(DOMAIN, {"/a/web-7.qcow2": "/b/web-7.qcow2", "/a/base.qcow2": "/b/base.qcow2"})
    assert changed.count("/b/") == 2
    assert "/a/" not in changed


def test_screens() -> None:
    """Both places: libvirt refuses XML in which they differ."""
    assert replace_listen(DOMAIN, {"10.0.0.1": "10.0.0.2"}).count("10.0.0.2") == 2


def test_cpu_and_emulator() -> None:
    """A named model in place of the host's CPU with its topology; features off, also those that nobody named."""
    named = name_model(DOMAIN, "EPYC")
    assert '<cpu mode="custom" match="exact" check="partial"><model fallback="forbid">EPYC</model><topology' in named
    assert "avx" not in named
    less = disable_features(DOMAIN, ["avx", "avx2"])
    assert '<feature policy="disable" name="avx" />' in less
    assert '<feature name="avx2" policy="disable" />' in less
    assert "<emulator>/opt/qemu</emulator>" in set_emulator(DOMAIN, "/opt/qemu")


def test_what_changes_nothing_is_the_very_same_text() -> None:
    """Not even spaces or quotes are others."""
    assert replace_bridges(DOMAIN, {"br9": "br1"}) is DOMAIN
    assert replace_devices(DOMAIN, {HERE: HERE}) == replace_devices(DOMAIN, {}) == DOMAIN


def test_words_of_qemus_namespace_survive() -> None:
    """What libvirt passes on to QEMU stays in its namespace."""
    assert "http://libvirt.org/schemas/domain/qemu/1.0" in set_emulator(DOMAIN, "/opt/qemu")
    assert ':arg value="-x"' in set_emulator(DOMAIN, "/opt/qemu")


def test_what_depends_on_the_order_is_refused() -> None:
    """Of br0 -> br1 -> br2 nobody knows which was meant."""
    with pytest.raises(BadInput, match="br0 becomes br1, and br1 becomes br2"):
        replace_bridges(DOMAIN, {"br0": "br1", "br1": "br2"})


def test_renaming_as_a_person_writes_it() -> None:
    """All kinds at once; an address may be written in two forms."""
    renaming = parse_renaming(
        ["bridge:br0=br1", "disk:/a/web-7.qcow2=/b/web=7", f"device:{HERE}={THERE.nodedev}", "listen:10.0.0.1=::"]
    )
    changed = renaming.apply(DOMAIN)
    assert all(word in changed for word in ("br1", "/b/web=7", 'bus="0x05"', 'listen="::"'))
    assert renaming.idle("web-7", DOMAIN) == ()
    assert parse_renaming([]).is_empty
    assert parse_renaming([]).apply(DOMAIN) is DOMAIN


def test_a_name_that_the_domain_does_not_have() -> None:
    """It is a slip, and told before anything is moved."""
    blockers = parse_renaming(["bridge:br7=br1", "network:br0=lan2", "bridge:br0=br0"]).idle("web-7", DOMAIN)
    assert [blocker.code for blocker in blockers] == ["map.nothing"] * 2
    assert "web-7 has no br7 that is a Linux bridge" in blockers[0].what


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["bridge=br0"], "WHAT:HERE=THERE"),
        (["vlan:1=2"], "bridge: a Linux bridge"),
        (["bridge:br0="], "none"),
        (["bridge:br0=br\x00"], "characters that no name in XML has"),
        (["disk:/a.img=/b\n.img"], "characters that no name in XML has"),
        (["disk:/a.img=/\udcff.img"], "characters that no name in XML has"),
        (["bridge:br0=br1", "bridge:br0=br2"], "twice"),
        (["device:0000:03:10.0=nowhere"], "PCI address 'nowhere'"),
        (["bridge:br0=br1", "bridge:br1=br2"], "order"),
    ],
)
def test_what_is_no_renaming_is_refused(given: list[str], told: str) -> None:
    """The reason is told before a daemon is asked."""
    with pytest.raises(BadInput) as caught:
        parse_renaming(given)
    assert told in str(caught.value)

"""May a libvirt domain move to another libvirt's host? Every reason why not, each with its fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.errors import Blocker
from vmferry.core.ids import GuestUuid
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.asking import ask_case
from vmferry.libvirt.checks import Case, Offer, XmlBlocker, find_blockers, read_offer
from vmferry.libvirt.checks.offer import Said
from vmferry.libvirt.facts import Domain, DomainState
from vmferry.libvirt.tree import parse

PAGE = Path(__file__).parents[2] / "docs" / "libvirt.md"
UUID = GuestUuid("6f1c1a1e-0000-4000-8000-000000000007")
OTHER = GuestUuid("6f1c1a1e-0000-4000-8000-000000000008")
QEMU = "/usr/bin/qemu-system-x86_64"
#: what a daemon says of its host, shortened
CAPABILITIES = f"""<capabilities>
<host><cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor>
<feature name='svm'/><feature name='avx'/></cpu></host>
<guest><os_type>hvm</os_type><arch name='i686'><emulator>/usr/bin/qemu-system-i386</emulator>
<machine>pc-q35-99.0</machine><domain type='xen'/></arch></guest>
<guest><os_type>hvm</os_type><arch name='x86_64'><wordsize>64</wordsize><emulator>{QEMU}</emulator>
<machine maxCpus='255'>pc-q35-7.2</machine><machine canonical='pc-q35-10.0' maxCpus='288'>q35</machine>
<domain type='qemu'/><domain type='kvm'><machine>pc-q35-6.2</machine></domain></arch></guest>
</capabilities>"""
DOMAIN_CAPABILITIES = """<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>
<mode name='custom' supported='yes'><model usable='no'>EPYC-Milan</model><model usable='yes'>EPYC</model>
<model usable='unknown'>Nehalem</model></mode></cpu></domainCapabilities>"""
SAID = Said(
    "host-b",
    CAPABILITIES,
    DOMAIN_CAPABILITIES,
    networks={"default": True, "storage": False},
    pools={"images": True, "backup": False},
    interfaces=frozenset({"lo", "br0"}),
    node_devices=frozenset({"net_eth_0_52_54_00_00_00_02", "pci_0000_06_10_0", "computer"}),
    domains=(Domain("db-1", OTHER, DomainState.RUNNING, is_persistent=True),),
)
DOMAIN = f"""<domain type='kvm' id='3'><name>web-7</name><uuid>{UUID}</uuid>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
<cpu mode='custom'><model>EPYC</model><topology sockets='1' cores='2' threads='1'/>
<feature policy='require' name='avx'/></cpu>
<devices><emulator>{QEMU}</emulator>
<disk type='volume'><source pool='images' volume='web-7'/></disk>
<interface type='network'><source network='default'/><model type='virtio'/></interface>
<interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
<interface type='direct'><source dev='eth_0'/><model type='virtio'/></interface>
{{}}
</devices></domain>"""
PAIR = """<interface type='bridge'><mac address='52:54:00:00:00:09'/><source bridge='br0'/><model type='virtio'/>
<teaming type='persistent'/><alias name='ua-standby'/></interface>
<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:09'/>
<source><address type='pci' domain='0x0000' bus='0x06' slot='0x10' function='0x0'/></source>
<teaming type='transient' persistent='ua-standby'/></interface>"""


def case(devices: str = "", said: Said = SAID, source_cpu: str | None = None, **texts: str) -> Case:
    """Return a case; `old=new` replaces a word of the domain."""
    xml = DOMAIN.replace("{}", devices)
    for old, new in texts.items():
        assert old in xml
        xml = xml.replace(old, new)
    return Case(parse(xml), source_cpu, read_offer(said))


def changed(old: str, new: str, said: Said = SAID) -> Case:
    """Return a case with another text in its domain."""
    assert old in DOMAIN
    return Case(parse(DOMAIN.replace(old, new).replace("{}", "")), None, read_offer(said))


def test_a_domain_that_fits_has_no_blocker() -> None:
    """Everything that it needs is there, and everything could be seen; a failover pair moves."""
    for devices in ("", PAIR):
        assert find_blockers(case(devices)) == find_blockers(case(devices))
        verdict = find_blockers(case(devices))
        assert (verdict.blockers, verdict.unseen) == ((), ())


def test_one_that_crashed_has_a_process_still() -> None:
    """Libvirt keeps it (on_crash preserve): at the destination it is in the way, at the source it is ended first."""
    there = replace(SAID, domains=(Domain("web-7", UUID, DomainState.CRASHED, is_persistent=False),))
    assert "identity.runs-there" in {blocker.code for blocker in find_blockers(case(said=there)).blockers}
    assert there.domains[0].is_active
    (blocker,) = find_blockers(replace(case(), state=DomainState.CRASHED)).blockers
    assert blocker.fix.startswith("virsh destroy web-7, then start it")


def test_a_paused_domain_moves() -> None:
    """Its memory is there, and libvirt keeps it paused."""
    assert find_blockers(replace(case(), state=DomainState.PAUSED)).blockers == ()


def test_what_a_host_offers_is_read_from_its_own_words() -> None:
    """Machines with what aliases stand for, and models that can be used; nothing of other architectures."""
    offer: Offer = read_offer(SAID)
    assert offer.machines == {"pc-q35-7.2", "q35", "pc-q35-10.0", "pc-q35-6.2"}
    assert offer.accelerations == {"kvm", "qemu"}
    assert (offer.emulator, offer.host_cpu) == (QEMU, "x86_64 EPYC AMD avx svm")
    assert offer.cpu_models == {"EPYC", "Nehalem"}
    assert offer.has_card("eth_0")


def test_bridges_are_none_of_the_node_devices() -> None:
    """Libvirt lists them as interfaces; a card that is part of a bridge is none of these, and a node device."""
    offer = read_offer(
        replace(SAID, node_devices=frozenset({"net_br0_52_54_00_00_00_01", "net_eth_0_52_54_00_00_00_02"}))
    )
    assert offer.has_card("eth.0")
    assert not offer.has_card("eth")
    there = replace(SAID, interfaces=frozenset({"br-lan", "br0"}))
    assert find_blockers(changed("'br0'", "'br-lan'", there)).blockers == ()
    (blocker,) = find_blockers(changed("'br0'", "'br-wan'", there)).blockers
    assert blocker.code == "network.no-bridge"
    gone = replace(there, interfaces=frozenset({"br-lan"}), node_devices=frozenset({"net_br0_52_54_00_00_00_01"}))
    assert [blocker.code for blocker in find_blockers(case(said=gone)).blockers] == [
        "network.no-bridge",
        "network.no-card",
    ]


VF = PAIR.partition("<interface type='hostdev'")
#: what is wrong -> (the case, code, words of the blocker and its fix, words of its diff)
CASES: dict[str, tuple[Callable[[], Case], str, tuple[str, ...], tuple[str, ...]]] = {
    "it does not run": (
        lambda: replace(case(), state=DomainState.SHUTOFF),
        "domain.not-running",
        ("domain web-7 is shut off", "virsh start web-7"),
        (),
    ),
    "something works on it": (
        lambda: replace(case(), state=DomainState.RUNNING, job="a backup, for 3.0 s"),
        "domain.job-runs",
        ("on domain web-7 already: a backup, for 3.0 s", "virsh domjobabort web-7"),
        (),
    ),
    "no KVM there": (
        lambda: case(said=replace(SAID, capabilities=CAPABILITIES.replace("'kvm'", "'qemu'"))),
        "accelerator.differs",
        ("runs with kvm", "host-b has qemu"),
        (),
    ),
    "a newer machine": (
        lambda: changed("pc-q35-7.2", "pc-q35-11.0"),
        "machine.missing",
        ("pc-q35-11.0", "at most pc-q35-10.0", "newer QEMU"),
        (),
    ),
    "another emulator": (
        lambda: changed(QEMU, "/opt/qemu/bin/qemu", replace(SAID, emulator_error="No such file or directory")),
        "emulator.missing",
        ("/opt/qemu/bin/qemu", "No such file", "--xml"),
        ("-    <emulator>/opt/qemu/bin/qemu</emulator>", f"+    <emulator>{QEMU}</emulator>"),
    ),
    "features that are not there": (
        lambda: case(said=replace(SAID, cpu_error="the CPU is incompatible: required features: avx, avx2\n")),
        "cpu.features-missing",
        ("required features: avx, avx2", "without avx, avx2"),
        (
            '-    <feature policy="require" name="avx" />',
            '+    <feature policy="disable" name="avx" />',
            '+    <feature name="avx2" policy="disable" />',
        ),
    ),
    "a CPU that libvirt refuses otherwise": (
        lambda: case(said=replace(SAID, cpu_error="Unknown CPU model EPYC-Turin")),
        "cpu.refused",
        ("Unknown CPU model EPYC-Turin",),
        (),
    ),
    "a model that is not usable": (
        lambda: changed("<model>EPYC<", "<model>EPYC-Milan<"),
        "cpu.refused",
        ("EPYC-Milan", "cpu model EPYC, which host-b has"),
        (
            "-    <model>EPYC-Milan</model>",
            '+    <model fallback="forbid">EPYC</model>',
            '-    <feature policy="require" name="avx" />',
        ),
    ),
    "the host's own CPU": (
        lambda: changed("mode='custom'", "mode='host-passthrough'"),
        "cpu.host-passthrough",
        ("the CPU of its host", "a host with the same CPU"),
        ('-  <cpu mode="host-passthrough">', '+  <cpu mode="custom" match="exact" check="partial">'),
    ),
    "everything that one QEMU can": (
        lambda: replace(changed("mode='custom'", "mode='maximum'"), source_cpu="x86_64 EPYC AMD avx svm"),
        "cpu.maximum",
        ("has another one",),
        ('+    <model fallback="forbid">EPYC</model>',),
    ),
    "a network that is off": (
        lambda: changed("network='default'", "network='storage'"),
        "network.inactive",
        ("virsh net-start storage on host-b",),
        (),
    ),
    "a network that is not there": (
        lambda: changed("network='default'", "network='lan'"),
        "network.missing",
        ("network lan", "it has default, storage", "net-define"),
        (),
    ),
    "a bridge that is not there": (lambda: changed("'br0'", "'br9'"), "network.no-bridge", ("br9", "host-b"), ()),
    "a card that is not there": (lambda: changed("'eth_0'", "'eth9'"), "network.no-card", ("eth9",), ()),
    "a pool that is off": (lambda: changed("'images'", "'backup'"), "pool.inactive", ("virsh pool-start backup",), ()),
    "a pool that is not there": (lambda: changed("'images'", "'vault'"), "pool.missing", ("vault", "pool-define"), ()),
    "a device of the host": (
        lambda: case(
            "<hostdev mode='subsystem' type='pci'><source>"
            "<address domain='0' bus='6' slot='0x10' function='0'/></source></hostdev>"
        ),
        "device.passthrough",
        ("/domain/devices/hostdev, pci_0000_06_10_0", "virsh detach-device web-7", "<teaming>"),
        ('-    <hostdev mode="subsystem" type="pci">', "-    </hostdev>"),
    ),
    "a card of the host without a partner": (
        lambda: case("<interface type='hostdev'><source><address bus='x' slot='1'/></source></interface>"),
        "device.passthrough",
        ("network card of the host", "/domain/devices/interface[4])"),
        ('-    <interface type="hostdev">',),
    ),
    "a vDPA device": (
        lambda: case("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>"),
        "device.vdpa",
        ("vDPA",),
        ("-",),
    ),
    "a directory": (
        lambda: case("<filesystem type='mount'/>"),
        "device.filesystem",
        ("directory of the host",),
        ("-    <filesystem",),
    ),
    "a pair without its card": (
        lambda: case(VF[1] + VF[2]),
        "teaming.no-partner",
        ("paired with ua-standby: no network card of that alias", "<alias name='ua-standby'/>"),
        (),
    ),
    "a pair whose card is emulated": (
        lambda: case(PAIR.replace("'virtio'", "'e1000'")),
        "teaming.no-partner",
        ("a card that is not virtio",),
        (),
    ),
    "a pair with two addresses": (
        lambda: case(PAIR.replace("00:09", "00:0A", 1)),
        "teaming.other-mac",
        ("52:54:00:00:00:09, its virtio card 52:54:00:00:00:0a", "not take them for a pair"),
        ('-      <mac address="52:54:00:00:00:09" />', '+      <mac address="52:54:00:00:00:0a" />'),
    ),
    "a pair whose device is only here": (
        lambda: case(PAIR.replace("0x10", "0x11")),
        "teaming.no-device",
        ("pci_0000_06_11_0, which host-b does not have", "<forward mode='hostdev'>"),
        (),
    ),
    "a name that is taken": (
        lambda: case(said=replace(SAID, domains=(Domain("web-7", OTHER, DomainState.SHUTOFF, is_persistent=True),))),
        "identity.name-taken",
        (OTHER, "--dname"),
        (),
    ),
    "a copy with the same UUID": (
        lambda: case(said=replace(SAID, domains=(Domain("web-8", UUID, DomainState.SHUTOFF, is_persistent=True),))),
        "identity.uuid-taken",
        ("web-8", UUID),
        (),
    ),
    "it runs there already": (
        lambda: case(said=replace(SAID, domains=(Domain("web-7", UUID, DomainState.PAUSED, is_persistent=True),))),
        "identity.runs-there",
        ("is paused on host-b already", "virsh domstate web-7"),
        (),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_thing_that_is_wrong_is_one_blocker(name: str) -> None:
    """It has its code, what was seen, what to do, and a diff where a change of the XML does it."""
    make, code, words, diff = CASES[name]
    verdict = find_blockers(make())
    (blocker,) = verdict.blockers
    assert blocker.code == code
    assert [word for word in words if word not in f"{blocker.what}; {blocker.fix}"] == []
    assert "web-7" in blocker.what
    shown = blocker.diff if isinstance(blocker, XmlBlocker) else ""
    assert bool(shown) is bool(diff)
    assert [line for line in diff if line not in shown] == [], shown


def test_all_that_is_wrong_is_told_at_once() -> None:
    """Nothing hides behind the first reason."""
    said = replace(
        SAID,
        networks={},
        pools={},
        cpu_error="required features: avx",
        interfaces=frozenset(),
        node_devices=frozenset(),
    )
    verdict = find_blockers(case(PAIR, said))
    assert [blocker.code for blocker in verdict.blockers] == [
        "cpu.features-missing",
        "teaming.no-device",
        "network.missing",
        *["network.no-bridge", "network.no-card", "network.no-bridge"],
        "pool.missing",
    ]


def test_what_could_not_be_seen_is_said() -> None:
    """A daemon without networks, pools or devices is no reason not to move, and no proof that it works."""
    nothing = replace(SAID, networks=None, pools=None, interfaces=None, node_devices=None)
    socket = "<interface type='vhostuser'><source type='unix' path='/run/s' mode='client'/></interface>"
    verdict = find_blockers(case(PAIR + socket, nothing))
    assert verdict.blockers == ()
    assert [sentence.partition(" on host-b")[0].partition(":")[0] for sentence in verdict.unseen] == [
        "which networks host-b has",
        "which bridges and network cards host-b has",
        "which storage pools host-b has",
        "whether a vhost-user back-end serves /run/s",
        "which devices host-b has for a failover pair",
    ]
    without_pool = find_blockers(changed("<disk type='volume'>", "<disk type='file'>", nothing))
    assert without_pool.unseen == verdict.unseen[:2]


def test_the_hosts_own_cpu_moves_to_the_same_cpu() -> None:
    """Two hosts with the same CPU: its model, vendor and every feature."""
    own = changed("mode='custom'", "mode='host-passthrough'")
    assert find_blockers(replace(own, source_cpu="x86_64 EPYC AMD avx svm")).blockers == ()
    assert find_blockers(replace(own, source_cpu="x86_64 EPYC AMD avx")).blockers != ()


def test_a_domain_that_is_defined_there_may_come() -> None:
    """Its own definition at the destination, where it does not run, is no clash."""
    own = (Domain("web-7", UUID, DomainState.SHUTOFF, is_persistent=True),)
    assert find_blockers(case(said=replace(SAID, domains=own))).blockers == ()


def test_nonsense_is_judged_and_not_believed() -> None:
    """An empty domain and a host that offers nothing give blockers, never a crash."""
    empty = Said("host-b", "<capabilities/>", None)
    blockers: tuple[Blocker, ...] = find_blockers(Case(parse("<domain/>"), None, read_offer(empty))).blockers
    assert [blocker.code for blocker in blockers] == ["accelerator.differs", "machine.missing"]


def test_every_code_is_on_the_page() -> None:
    """The page lists each code that a check gives, and no other."""
    section = PAGE.read_text().partition("## Checks of a domain")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert {code for row in rows for code in re.findall("`([a-z.-]+)`", row.split("|")[1])} == {
        code for _, code, _, _ in CASES.values()
    }


async def test_a_daemon_is_asked_for_all_of_it() -> None:
    """Libvirt's imitation answers what it can: its network and pool are there, what it cannot say is unseen."""
    connection = await LibvirtConnection.connect("test:///default")
    assert await connection.networks() == {"default": True}
    assert await connection.pools() == {"default-pool": True}
    asked = await ask_case("test", connection, connection, "host-b")
    verdict = find_blockers(asked)
    assert (asked.name, asked.destination.networks) == ("test", {"default": True})
    assert [blocker.code for blocker in verdict.blockers] == [
        "identity.runs-there",
        "accelerator.differs",
        "machine.missing",
    ]
    await connection.close()

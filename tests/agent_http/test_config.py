"""agent.toml is read strictly; every mistake is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.agent.config import AgentConfig, load_config, parse_config
from vmferry.core.errors import BadInput, NotFound
from vmferry.core.guest import Acceleration
from vmferry.core.units import GIB

FULL = """
name = "host-a"
listen = "10.77.0.1"
port = 7716
advertise = "host-a.example"
state_dir = "/srv/vmferry"
run_dir = "/run/vmferry"
ca_dir = "/srv/ca"
bridges = ["br0"]
memory_reserve = "1GiB"

[migration]
address = "10.77.0.1"
ports = "49152-49160"
max_bandwidth = 125000000

[qemu]
argv = ["/opt/qemu/bin/qemu-system-x86_64", "-L", "/opt/qemu/share"]
env = { QEMU_MODULE_DIR = "/opt/qemu/modules" }
uids = "700000-700099"
acceleration = "tcg"

[physical_networks]
fabric = ["03:00.0", "0000:04:00.1"]

[sanlock]
lockspace = "fleet-1"
host_id = 7
dir = "/srv/nfs/leases"
image_dirs = ["/srv/nfs"]
"""

SANLOCK = """[sanlock]
lockspace = "fleet"
dir = "/srv/l"
image_dirs = ["/srv"]
"""


def test_everything() -> None:
    """Every key arrives where it belongs."""
    config = parse_config(FULL, "agent.toml")
    assert (config.name, config.port, config.bridges) == ("host-a", 7716, ("br0",))
    assert config.memory_reserve == GIB
    assert config.migration.ports == (49152, 49160)
    assert config.qemu.uids == (700_000, 700_099)
    assert config.qemu.acceleration is Acceleration.TCG
    assert config.qemu.argv[1:] == ("-L", "/opt/qemu/share")
    assert config.authority_dir == Path("/srv/ca")
    assert {name: list(map(str, cards)) for name, cards in config.cards.items()} == {
        "fabric": ["0000:03:00.0", "0000:04:00.1"]
    }
    assert config.sanlock is not None
    assert (config.sanlock.lockspace, config.sanlock.host_id) == ("fleet-1", 7)
    assert (config.sanlock.dir, config.sanlock.image_dirs) == (Path("/srv/nfs/leases"), (Path("/srv/nfs"),))
    assert config.own_dirs[-1] == config.sanlock.dir
    assert config.sanlock.socket == Path("/run/sanlock/sanlock.sock")


def test_nothing() -> None:
    """An empty file is the defaults."""
    config = parse_config("", "agent.toml")
    assert config == AgentConfig()
    assert config.authority_dir == Path("/var/lib/vmferry/ca")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('\n\ncolour = "red"', "line 3: unknown key colour (known: name, listen"),
        ("[qemu]\n\nuid = 7", "line 3: unknown key qemu.uid (known: argv, env, uids, acceleration)"),
        ('port = "7716"', "line 1: port: Input should be a valid integer"),
        ("port = 70000", "line 1: port: Input should be less than or equal to 65535"),
        ('listen = "everywhere"', "line 1: listen:"),
        ('state_dir = "state"', "line 1: state_dir: expected an absolute path"),
        ('[migration]\ntls_dir = "pki"', "line 2: migration.tls_dir: expected an absolute path"),
        ('name = "Host A"', "line 1: name:"),
        ('[migration]\nports = "9-1"', "line 2: migration.ports: expected FIRST-LAST"),
        ("port = 49160", "port 49160 lies in migration.ports"),
        ('[qemu]\nacceleration = "fast"', "line 2: qemu.acceleration: expected one of auto, kvm, tcg"),
        ("[qemu]\nargv = []", "line 2: qemu.argv:"),
        ('memory_reserve = "much"', "line 1: memory_reserve:"),
        ("[migration]\nmax_bandwidth = 0", "line 2: migration.max_bandwidth:"),
        ("[sanlock]", "line 1: sanlock.lockspace: Field required; line 1: sanlock.host_id: Field required"),
        (f"{SANLOCK}host_id = 0", "line 5: sanlock.host_id: Input should be greater than or equal to 1"),
        (f"{SANLOCK}host_id = 2001", "line 5: sanlock.host_id: Input should be less than or equal to 2000"),
        (f"{SANLOCK}host_id = 1\nhostid = 1", "line 6: unknown key sanlock.hostid (known: lockspace, host_id, dir"),
        (f"{SANLOCK}host_id = 1".replace("/srv/l", "/srv/my l"), "line 3: sanlock.dir: expected an absolute path with"),
        (f"{SANLOCK}host_id = 1".replace("/srv/l", "leases"), "line 3: sanlock.dir: expected an absolute path"),
        (f"{SANLOCK}host_id = 1".replace('"/srv"', ""), "line 4: sanlock.image_dirs: Tuple should have at least 1"),
        (f"{SANLOCK}host_id = 1".replace("fleet", "Fleet 1"), "line 2: sanlock.lockspace:"),
        (f"{SANLOCK}host_id = 1".replace("fleet", "f" * 49), "line 2: sanlock.lockspace:"),
        ('[physical_networks]\nfabric = ["ens1"]', "line 2: physical_networks.fabric.0: expected a PCI address"),
        ("[physical_networks]\nfabric = []", "line 2: physical_networks.fabric: Tuple should have at least 1"),
        ('[physical_networks]\n"Fabric 1" = ["03:00.0"]', "physical_networks.Fabric 1"),
        ("name = ", "is not TOML"),
    ],
)
def test_mistakes(text: str, told: str) -> None:
    """A mistake is told with file, line, key and what is allowed."""
    with pytest.raises(BadInput) as caught:
        parse_config(text, "/etc/vmferry/agent.toml")
    assert "/etc/vmferry/agent.toml" in caught.value.what
    assert told in caught.value.what


def test_all_mistakes_at_once() -> None:
    """Two mistakes are two complaints."""
    with pytest.raises(BadInput) as caught:
        parse_config('port = -1\ncolour = "red"', "agent.toml")
    assert "line 1: port" in caught.value.what
    assert "line 2: unknown key colour" in caught.value.what


def test_missing_file(tmp_path: Path) -> None:
    """A file that was named and is not there is an error that says what to do."""
    with pytest.raises(NotFound, match=r"agent\.toml") as caught:
        load_config(tmp_path / "agent.toml")
    assert "--config" in str(caught.value.fix)


def test_binary_file(tmp_path: Path) -> None:
    """A file that is not text is an error, not a stack trace."""
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        load_config(tmp_path / "agent.toml")

"""libvirt hosts that are reached by ssh, by us and by each other: a real ssh, a real server, real daemons."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from tests.libvirt.versions import IDS, VERSIONS, find_or_skip

from vmferry.lab.commands import Ran
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, libvirt_missing
from vmferry.lab.libvirt.moves import connected, daemons_of, oracle_of, start_domain

SERVER = shutil.which("dropbear", path="/usr/sbin:/usr/bin")
MISSING = libvirt_missing() or (None if SERVER else "dropbear is not installed: apt-get install dropbear-bin")
pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]
PLAN = GuestPlan("linux", memory_mib=192, working_set_mib=16, rate=8)
#: Where ssh looks: in the user's own directory, whatever HOME says.
SSH_DIR = Path("/root/.ssh")


def key(directory: Path) -> str:
    """Make a key pair for ssh, and return the public half."""
    directory.mkdir(mode=0o700)
    made = directory / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(made)], check=True)
    return made.with_suffix(".pub").read_text("utf-8")


@dataclass(frozen=True)
class Ssh:
    """Two libvirt hosts, of which each lets the other and the operator in.

    Attributes:
        lab: both hosts.
        daemons: theirs.
        operator: the operator's own ~/.ssh.
        hosts: the daemons' own, by host.
    """

    lab: Lab
    daemons: dict[str, LibvirtDaemon]
    operator: Path
    hosts: dict[str, Path]

    def uri(self, host: str) -> str:
        """Return where a host's daemon is."""
        return f"qemu+ssh://root@{self.lab.hosts[host].address}/system"

    async def cli(self, *words: str) -> Ran:
        """Run the command on host-a as an operator whose ~/.ssh that is."""
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-euc"]
        script = f'mount --bind {self.operator} {SSH_DIR}; exec "$@"'
        return await self.lab.run([*enter, script, "sh", *self.lab.command("host-a", *words)])


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=VERSIONS, ids=IDS)
async def ssh(request: pytest.FixtureRequest) -> AsyncIterator[Ssh]:
    """An ssh server beside each daemon, in the same directories; the command knows both hosts by ssh."""
    SSH_DIR.mkdir(mode=0o700, exist_ok=True)  # where to mount
    async with Lab() as lab, daemons_of(lab, find_or_skip(request.param)) as daemons:
        directory = lab.directory / "ssh"
        directory.mkdir()
        keys = {name: key(directory / name) for name in ("operator", *lab.hosts)}
        made = Ssh(lab, daemons, directory / "operator", {host: directory / host for host in lab.hosts})
        with contextlib.ExitStack() as stack:
            known = "".join(stack.enter_context(serving(made, host, "".join(keys.values()))) for host in lab.hosts)
            for name in keys:
                (directory / name / "known_hosts").write_text(known, "utf-8")
            for name, host in (("lv-a", "host-a"), ("lv-b", "host-b")):
                await lab.must("host-a", "host", "add", name, "--libvirt", made.uri(host))
            yield made


@contextlib.contextmanager
def serving(ssh: Ssh, host: str, authorized: str) -> Iterator[str]:
    """Let these keys in on a host; yield its line for `known_hosts`."""
    own = ssh.hosts[host]
    (own / "authorized_keys").write_text(authorized, "utf-8")
    enter = ["nsenter", "--target", str(ssh.daemons[host].pid), "--mount", "--uts", "--net"]
    subprocess.run([*enter, "mount", "--bind", str(own), str(SSH_DIR)], check=True)
    file = own.parent / f"{host}.key"
    said = subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", str(file)], check=True, capture_output=True, text=True
    ).stdout
    words = next(line for line in said.splitlines() if line.startswith("ssh-ed25519 ")).split()
    address = ssh.lab.hosts[host].address
    options = ["-F", "-E", "-s", "-j", "-k", "-r", str(file), "-P", "", "-p", f"{address}:22"]
    with (own.parent / f"{host}.log").open("wb") as log:
        command, environment = [*enter, str(SERVER), *options], ssh.lab.environment()
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"{address} {words[0]} {words[1]}\n"
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def instead(file: Path, text: str | bytes | None) -> Iterator[None]:
    """Have other content in a file within the block; None: no such file."""
    before = file.read_bytes()
    try:
        if text is None:
            file.unlink()
        else:
            file.write_bytes(text.encode() if isinstance(text, str) else text)
        yield
    finally:
        file.write_bytes(before)


def said_of(ran: Ran) -> str:
    """Return what a command said, on one line."""
    return " ".join((ran.stdout + ran.stderr).split())


async def test_a_host_whose_key_is_unknown_or_another(ssh: Ssh) -> None:
    """Nobody is trusted at first sight and nothing is asked at the terminal: what to do is told."""
    known = ssh.operator / "known_hosts"
    lines = known.read_text("utf-8").splitlines()
    swapped = "\n".join(
        f"{one.split()[0]} {other.partition(' ')[2]}" for one, other in zip(lines, reversed(lines), strict=True)
    )
    for text in (None, swapped + "\n"):
        with instead(known, text):
            ran = await ssh.cli("check", PLAN.name, "lv-b", "--plain")
        assert ran.exit_code != 0, ran
        assert "Host key verification failed" in said_of(ran), ran
        assert "compare the host's key, then accept it: `ssh HOST`" in said_of(ran), ran
        assert "Traceback" not in said_of(ran), ran


async def test_a_key_that_the_host_does_not_let_in(ssh: Ssh) -> None:
    """No password is asked for."""
    mine = (ssh.operator / "id_ed25519.pub").read_text("utf-8")
    kept = ssh.hosts["host-b"] / "authorized_keys"
    with instead(kept, kept.read_text("utf-8").replace(mine, "")):
        ran = await ssh.cli("check", PLAN.name, "lv-b", "--plain")
    assert ran.exit_code != 0, ran
    assert "Permission denied" in said_of(ran), ran
    assert "give this user access there: an ssh key" in said_of(ran), ran


async def test_there_and_back(ssh: Ssh) -> None:
    """We reach both daemons by ssh and they each other; the stream goes from QEMU to QEMU."""
    async with connected(ssh.daemons):
        await start_domain(ssh.daemons["host-a"], PLAN)
        for name, host in (("lv-b", "host-b"), ("lv-a", "host-a")):
            ran = await ssh.cli("migrate", PLAN.name, name, "--plain", "--libvirt", "flow=p2p")
            assert ran.exit_code == 0, ran
            assert (await oracle_of(ssh.daemons[host])).startswith("oracle clean")


async def test_daemons_that_do_not_trust_each_other(ssh: Ssh) -> None:
    """The source's does not know the other's key: this process stands between them, and says so."""
    async with connected(ssh.daemons):
        await start_domain(ssh.daemons["host-a"], PLAN)
        with instead(ssh.hosts["host-a"] / "known_hosts", None):
            ran = await ssh.cli("migrate", PLAN.name, "lv-b", "--plain")
        assert ran.exit_code == 0, ran
        assert "this process stands between the two daemons instead" in said_of(ran), ran
        assert (await oracle_of(ssh.daemons["host-b"])).startswith("oracle clean")

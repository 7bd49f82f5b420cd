"""One nested host: a QEMU under TCG whose root is this machine's, read-only, with a tmpfs above."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import QMPClient

from vmferry.agent.config import DEFAULT_PORT
from vmferry.core.errors import Broken, TimedOut
from vmferry.lab.commands import Ran
from vmferry.lab.nested import control
from vmferry.lab.nested.channel import Channel
from vmferry.lab.nested.image import HostImage
from vmferry.lab.processes import identify, send
from vmferry.lab.qmp import connect_when_listening
from vmferry.lab.toolchain import QemuBinary

#: Seen: 6 s on an idle machine, 13 s for two at once on a busy one.
UP_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 60.0
NIC = "nic0"
#: One shell after the other, each with a terminal of its own.
_SHELL = """
while_up='while :; do setsid -c sh -i </dev/hvc0 >/dev/hvc0 2>&1; sleep 1; done'
cd /root; setsid sh -c "$while_up" </dev/null >/dev/null 2>&1 &
"""
#: The address that QEMU's own network has for its guest.
_OPERATOR_NET = """
for net in /sys/class/net/*; do
  [ $(cat $net/address) != {mac} ] || {{ ip addr add 10.0.2.15/24 dev ${{net##*/}}; ip link set ${{net##*/}} up; }}
done
"""
#: HPET, whose speed is known: a kernel that is started on a busy machine has to guess that of the TSC.
_CMDLINE = "console=ttyS0 quiet panic=-1 mitigations=off tsc=unstable clocksource=hpet"


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What a nested host is made of.

    Attributes:
        name: its host name.
        mac: of its network card.
        address: of its network card, with the length of the prefix.
        memory_mib: RAM; what it writes to its root is in it too.
        layers: folders of this machine whose files it has in its root, the last one on top.
        operator_port: of this machine's loopback: what connects there reaches the host's agent; None: nothing does.
        has_shell: whether there is a shell at its `shell_socket`.
    """

    name: str
    mac: str
    address: str
    memory_mib: int = 1024
    layers: tuple[Path, ...] = ()
    operator_port: int | None = None
    has_shell: bool = False

    @property
    def operator_mac(self) -> str:
        """Of the network card by which this machine reaches the host."""
        return f"{self.mac[:9]}7f{self.mac[11:]}"

    @property
    def ip(self) -> str:
        """The address alone."""
        return self.address.partition("/")[0]


class NestedHost:
    """A host that can be started, asked to run commands, cut from the network and powered off.

    Args:
        plan: what it is made of.
        image: what it starts from.
        qemu: the emulator.
        directory: for its sockets and logs.
        env: the emulator's environment; the lab finds it by that.
        wire: arguments of QEMU that make the network back-end `wire`.
    """

    def __init__(
        self,
        plan: HostPlan,
        image: HostImage,
        qemu: QemuBinary,
        directory: Path,
        env: Mapping[str, str],
        wire: Sequence[str],
    ) -> None:
        self.plan = plan
        self._image = image
        self._qemu = qemu
        self.directory = directory
        self._env = {**env, **qemu.env}
        self._wire = tuple(wire)
        self._channel = Channel(plan.name, directory / "control.sock")
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def shell_socket(self) -> Path:
        """Where its shell is, one user at a time, if its plan has one."""
        return self.directory / "shell.sock"

    @property
    def is_up(self) -> bool:
        """Whether commands can be run now."""
        return self._channel.is_up

    async def start(self) -> None:
        """Power on, and wait until commands can be run and the network card has its address.

        Raises:
            Broken: it ended by itself.
            TimedOut: it is not up in time.
        """
        await self.power_off()  # what is left of one that ended by itself
        await self._channel.listen()
        with (self.directory / "qemu.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv(), env=self._env, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        self._watching = asyncio.create_task(self._watch(self._process))
        try:
            async with asyncio.timeout(UP_TIMEOUT_S):
                await self._channel.wait_up()
        except TimeoutError as error:
            raise TimedOut(f"Nested host {self.plan.name} is not up; {self._last_words()}") from error
        except Broken as error:
            raise Broken(f"{error.what}; {self._last_words()}") from error
        await self.must("ip", "addr", "add", self.plan.address, "dev", "eth0")
        await self.must("ip", "link", "set", "eth0", "up")
        if self.plan.operator_port is not None:
            await self.shell(_OPERATOR_NET.format(mac=self.plan.operator_mac))
        if self.plan.has_shell:
            await self.shell(_SHELL)

    async def run(self, *argv: str, timeout_s: float = COMMAND_TIMEOUT_S, text: str = "") -> Ran:
        """Run a command in the host, as root, and return what it did.

        Raises:
            Broken: the host is not up, or ended.
            TimedOut: the command did not end in time.
        """
        return await self._channel.run(argv, timeout_s, text)

    async def must(self, *argv: str, timeout_s: float = COMMAND_TIMEOUT_S, text: str = "") -> str:
        """Run a command in the host and return its standard output.

        Raises:
            Broken: its exit code was not 0, or the host ended.
            TimedOut: it did not end in time.
        """
        ran = await self.run(*argv, timeout_s=timeout_s, text=text)
        if ran.exit_code:
            said = (ran.stderr or ran.stdout).strip()
            raise Broken(f"`{shlex.join(argv)}` on nested host {self.plan.name} ended with {ran.exit_code}: {said}")
        return ran.stdout

    async def shell(self, script: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a script of sh(1) in the host, ended by the first command that fails; returns its standard output.

        Raises:
            Broken: its exit code was not 0, or the host ended.
            TimedOut: it did not end in time.
        """
        return await self.must("sh", "-euc", script, timeout_s=timeout_s)

    async def python(self, code: str, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, text: str = "") -> str:
        """Run Python code in the host, with this interpreter and what it can import, and return what it printed.

        Raises:
            Broken: it raised something, or the host ended.
            TimedOut: it did not end in time.
        """
        return await self.must(sys.executable, "-c", code, *arguments, timeout_s=timeout_s, text=text)

    async def set_link(self, *, up: bool) -> None:
        """Plug the network cable in or out; the host sees its carrier come or go.

        Raises:
            Broken: the host is not up.
        """
        if self._process is None:
            raise Broken(f"Nested host {self.plan.name} is not up")
        qmp = QMPClient(self.plan.name)
        await connect_when_listening(qmp, self.directory / "qmp.sock", self._process)
        try:
            await qmp.execute("set_link", {"name": NIC, "up": up})
        finally:
            await qmp.disconnect()

    async def power_off(self) -> None:
        """Take its power away, at once; commands that run in it are told as broken. Idempotent; it can start again."""
        if self._process is not None:
            if (identity := identify(self._process.pid)) is not None:
                send(identity, signal.SIGKILL)
            self._process = None
        if self._watching is not None:
            await self._watching
            self._watching = None
        await self._channel.close()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self._channel.hang_up()

    def _last_words(self) -> str:
        logs = [self.directory / name for name in ("qemu.log", "console.log")]
        lines = [path.read_text("utf-8", "replace").splitlines()[-8:] for path in logs if path.exists()]
        return "\n".join(["its logs end with:", *(line for tail in lines for line in tail)])

    def _argv(self) -> list[str]:
        directory, image, plan = self.directory, self._image, self.plan
        shares = [_share("machine", Path("/"))]
        shares += [_share(f"layer{number}", layer) for number, layer in enumerate(self._layers())]
        options = {
            "name": [f"nested-{self.plan.name}"],
            "display": ["none"],
            # SVM needs the model of a processor that has it: nested hosts are to run KVM
            "cpu": ["EPYC-v1"],
            "machine": ["q35"],
            "accel": ["tcg,thread=multi"],
            # With two, QEMU 10.0 dies in one of some 16 starts, when one CPU moves a device's memory that another uses:
            # "iotlb_to_section: Assertion `section_index < d->map.sections_nb' failed" (QEMU issue 1921, still there).
            "smp": ["1"],
            "m": [f"{self.plan.memory_mib}M"],
            "kernel": [str(image.kernel)],
            "initrd": [str(image.initrd)],
            "append": [self._cmdline()],
            "serial": [f"file:{directory / 'console.log'}"],
            "qmp": [f"unix:{directory / 'qmp.sock'},server=on,wait=off"],
            "chardev": [f"socket,id=control,path={directory / 'control.sock'}"],
            "virtfs": shares,
            "device": [
                "virtio-serial-pci",
                f"virtserialport,chardev=control,name={control.PORT_NAME}",
                f"virtio-net-pci,id={NIC},netdev=wire,mac={self.plan.mac},romfile=",
            ],
        }
        flags = ["-nodefaults", "-no-user-config", "-no-reboot"]
        if (port := plan.operator_port) is not None:
            forward = f"hostfwd=tcp:127.0.0.1:{port}-:{DEFAULT_PORT}"
            options["netdev"] = [f"user,id=operator,restrict=on,ipv6=off,{forward}"]
            options["device"].append(f"virtio-net-pci,netdev=operator,mac={plan.operator_mac},romfile=")
        if plan.has_shell:
            options["chardev"].append(f"socket,id=shell,path={self.shell_socket},server=on,wait=off")
            options["device"].append("virtconsole,chardev=shell")
        return [*self._qemu.argv, *flags, *self._wire, *_words(options)]

    def _layers(self) -> tuple[Path, ...]:
        return (self._image.layer, *self.plan.layers)

    def _cmdline(self) -> str:
        """Return the kernel's command line; what the kernel does not know becomes a variable of init.sh."""
        told = {
            "layers": len(self._layers()),
            "name": self.plan.name,
            "python": sys.executable,
            "control": control.__file__,
        }
        return " ".join([_CMDLINE, *(f"vmferry_{name}={value}" for name, value in told.items())])


def hub(name: str, number: int, backends: Sequence[str], ports: Sequence[str] = ()) -> list[str]:
    """Return arguments of QEMU that join back-ends: a frame of one goes to all others.

    Args:
        name: of the network device that is joined with them.
        number: of the hub, one of the host's own.
        backends: without their ids; one alone needs no hub.
        ports: names of more network devices on it.
    """
    if len(backends) == 1 and not ports:
        return ["-netdev", f"{backends[0]},id={name}"]
    links = [f"{name}-link{index}" for index in range(len(backends))]
    netdevs = [f"{backend},id={link}" for backend, link in zip(backends, links, strict=True)]
    netdevs += [f"hubport,id={link}-port,hubid={number},netdev={link}" for link in links]
    netdevs += [f"hubport,id={port},hubid={number}" for port in (name, *ports)]
    return [word for netdev in netdevs for word in ("-netdev", netdev)]


def _words(options: Mapping[str, Iterable[str]]) -> list[str]:
    return [word for name, values in options.items() for value in values for word in (f"-{name}", value)]


def _share(tag: str, folder: Path) -> str:
    """Return what gives a host a folder of this machine, to read."""
    return f"local,path={folder},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"

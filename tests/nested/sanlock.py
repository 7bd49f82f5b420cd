"""Sanlock's daemons on nested hosts, and QEMUs that have leases of an image, started as an agent does it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from vmferry.core.disk_leases import DiskLeaseFacts
from vmferry.lab.nested import NestedHost
from vmferry.lab.toolchain import QemuBinary

PACKAGES = ("sanlock",)
MOUNTED = "/srv/vmferry"
LEASES = f"{MOUNTED}/leases"
LOCKSPACE = "nested"
#: Of each read and write, in seconds: nested hosts are slow, and 10 (the default) is long.
IO_TIMEOUT_S = 3
#: From which on a silent host's leases are another's.
DEAD_AFTER_S = 8 * IO_TIMEOUT_S + 60

_LOCKSPACE = f"""
mkdir -p {LEASES}
truncate -s 1M {LEASES}/lockspace
SANLOCK_PRIVILEGED=0 sanlock direct init -s {LOCKSPACE}:0:{LEASES}/lockspace:0 -o {IO_TIMEOUT_S}
"""
_WATCHDOG = """
modprobe softdog
mkdir -p /run/wdmd
wdmd -G root >/dev/null 2>&1 </dev/null
"""
#: It must not be started by a shell that waits for all that it has started: the daemon closes nothing.
_DAEMON = """
mkdir -p /run/sanlock
SANLOCK_PRIVILEGED=0 setsid sanlock daemon -D -w {watchdog} -h 0 -l 0 -e {name} >/run/sanlock.log 2>&1 </dev/null &
while [ ! -S /run/sanlock/sanlock.sock ]; do sleep 0.1; done
sanlock client add_lockspace -s {lockspace}:{host_id}:{leases}/lockspace:0 -o {timeout}
"""
_COMMON = f"""
import asyncio, dataclasses, json, subprocess, sys, time
from pathlib import Path
from vmferry.core.guest import BiosBoot, Disk, DiskFormat, GuestSpec
from vmferry.disks.sanlock.daemon import Daemon
from vmferry.disks.sanlock.leases import SanlockLeases, Settings

settings = Settings("{LOCKSPACE}", int(sys.argv[1]), Path("{LEASES}"), ("{MOUNTED}",))
leases = SanlockLeases(settings, Daemon(Path("/run/sanlock/sanlock.sock")))
"""
_FACTS = f"{_COMMON}\nprint(json.dumps(dataclasses.asdict(asyncio.run(leases.facts()))))"
_BEGIN = f"""{_COMMON}
SERVES = Path("/run/leased.qmp")

async def begin(until, image, command):
    spec = GuestSpec("web-7", 1 << 26, BiosBoot(), disks=(Disk(image, DiskFormat.RAW),))
    through = await leases.starting(spec, taking=True)
    SERVES.unlink(missing_ok=True)
    with open("/run/leased.log", "w+b") as log:
        out = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        child = subprocess.Popen([*through, "-", "", *command], **out)
        seen = None
        while child.poll() is None and not SERVES.exists():
            if seen is None and Path(f"/proc/{{child.pid}}/comm").read_text().startswith("qemu"):
                seen = time.monotonic()
            time.sleep(0.02)
        if child.poll() is None:
            Path("/run/leased.pid").write_text(str(child.pid))
            return dict(pid=child.pid, error=None, why=None, age_s=time.monotonic() - (seen or time.monotonic()))
        log.seek(0)
        if time.monotonic() < until:
            return None
        return dict(pid=None, error=log.read().decode(), why=await leases.why_not(spec), age_s=None)

async def main(patience_s, image, *command):
    until = time.monotonic() + float(patience_s)
    while (begun := await begin(until, image, command)) is None:
        pass
    return begun

print(json.dumps(asyncio.run(main(*sys.argv[2:]))))
"""


@dataclass(frozen=True, slots=True)
class Begun:
    """What became of a QEMU that was to have a lease."""

    pid: int | None
    error: str | None  #: its last words
    why: str | None  #: who has the lease, as the host's agent would say it
    age_s: float | None  #: how long it has had its lease, at the least


async def make_lockspace(host: NestedHost) -> None:
    """Make the directory of leases, once, on storage that is mounted."""
    await host.shell(_LOCKSPACE)


async def start_daemon(host: NestedHost, host_id: int, *, watchdog: bool = False) -> None:
    """Start a host's daemon and have it join."""
    if watchdog:
        await host.shell(_WATCHDOG)
    words = {"watchdog": int(watchdog), "name": host.plan.name, "lockspace": LOCKSPACE, "host_id": host_id}
    await host.shell(_DAEMON.format(**words, leases=LEASES, timeout=IO_TIMEOUT_S), timeout_s=120.0)


async def facts(host: NestedHost, host_id: int) -> DiskLeaseFacts:
    """Return what an agent there would say of its leases."""
    told = json.loads(await host.python(_FACTS, str(host_id)))
    alive = tuple((number, generation) for number, generation in told["alive"])
    return DiskLeaseFacts(**{**told, "image_dirs": tuple(told["image_dirs"]), "alive": alive})


async def end_qemu(host: NestedHost) -> None:
    """End the QEMU that was begun last, if it lives."""
    await host.shell("[ ! -e /run/leased.pid ] || kill -9 $(cat /run/leased.pid) || true; rm -f /run/leased.pid")


async def begin_qemu(host: NestedHost, host_id: int, qemu: QemuBinary, image: str, *, patience_s: float = 0.0) -> Begun:
    """Start a QEMU through the registration; its guest is to write to an image, and has not begun to run.

    Args:
        host: where.
        host_id: its own.
        qemu: which.
        image: raw.
        patience_s: for how long it is tried again when another has the lease.
    """
    file = f"driver=file,node-name=file,filename={image},cache.direct=on,locking=on"
    words = [
        *("-machine", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"),
        *("-blockdev", file, "-blockdev", "driver=raw,node-name=disk,file=file,cache.direct=on"),
        *("-device", "virtio-blk-pci,drive=disk", "-qmp", "unix:/run/leased.qmp,server=on,wait=off"),
    ]
    program = (await host.must("sh", "-c", 'command -v "$0"', qemu.argv[0])).strip()
    env = [f"{name}={value}" for name, value in qemu.env.items()]
    command = (*env, "--", program, *qemu.argv[1:], *words)
    limit_s = patience_s + 120.0
    told = await host.python(_BEGIN, str(host_id), str(patience_s), image, *command, timeout_s=limit_s)
    return Begun(**json.loads(told))

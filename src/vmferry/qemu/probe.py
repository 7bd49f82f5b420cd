"""What a QEMU can do, asked of a short-lived process; the answers are kept, because asking takes 0.1 s.

Answers are kept in memory and on disk under a key that changes with the program's file, the accelerator and, since
microcode and kernel decide what KVM offers, the boot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmferry.core.capabilities.features import COMPRESSION_PARAMETER, NO_COMPRESSION
from vmferry.core.errors import Broken
from vmferry.core.guest import Acceleration
from vmferry.core.host import QemuFacts
from vmferry.qemu.binary import QemuBinaryConfig
from vmferry.qemu.command_line import SANDBOX
from vmferry.qemu.cpu import UNMIGRATABLE_MODELS
from vmferry.qemu.freeze import DRIVERS, VERSIONED_MACHINE
from vmferry.qemu.process import read_boot_id, spawn
from vmferry.qemu.qmp import QmpSession, SaidNo

#: of what is stored; a change makes old files unread (1: a QEMU that died was taken for one without drivers; 2: nothing
#: was said of compressions; 3: nor of what encrypts by certificates)
FORMAT = 4


@dataclass(frozen=True, slots=True)
class CpuAnswer:
    """What QEMU says about one `-cpu` text in one machine type."""

    versioned_model: str  #: what the model's name stands for
    expanded: Mapping[str, object]  #: properties of the model's static expansion
    unavailable: tuple[str, ...]  #: features asked for and not offered


#: What encrypts by certificates -> how to make one that needs no file, or another one of the same library.
_OBJECTS: Mapping[str, Mapping[str, object]] = {
    "authz-simple": {"qom-type": "authz-simple", "identity": "nobody"},
    "tls-creds-x509": {"qom-type": "tls-creds-anon", "endpoint": "client"},
}

#: What capabilities there are is asked; that an older one keeps what these messages promise was never tried.
OLDEST = (7, 2, 0)


class ProbeCache:
    """Answers by key, in memory and in one small file each.

    Args:
        directory: where the files are; made when the first one is written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._memory: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        """Return the answer, None when there is none (or its file cannot be read)."""
        if key not in self._memory:
            try:
                stored = json.loads(self._path(key).read_text("utf-8"))
            except (OSError, ValueError):
                return None
            if not isinstance(stored, dict) or stored.get("key") != key:
                return None
            self._memory[key] = stored.get("answer")
        return self._memory[key]

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer; a file that cannot be written only costs the next start its time."""
        self._memory[key] = answer
        path = self._path(key)
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd, scratch = tempfile.mkstemp(dir=self._directory)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump({"key": key, "answer": answer}, file)
            Path(scratch).rename(path)

    def _path(self, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


class Prober:
    """Asks one QEMU what it can do.

    Args:
        binary: which QEMU.
        cache: where answers are kept.
    """

    def __init__(self, binary: QemuBinaryConfig, cache: ProbeCache) -> None:
        self._binary = binary
        self._cache = cache

    async def query_facts(self, acceleration: Acceleration) -> QemuFacts:
        """Return what this QEMU can do with the accelerator.

        Raises:
            Broken: QEMU does not start, or is too old.
        """
        key = self._key("facts", acceleration)
        answer = self._cache.get(key)
        if answer is None:
            async with probe_session(self._binary, ["-machine", "none", *_accel(acceleration)]) as session:
                answer = await _ask_facts(session)
            self._cache.put(key, answer)
        facts = _facts(answer)
        if facts.version < OLDEST:
            seen, oldest = (".".join(map(str, version)) for version in (facts.version, OLDEST))
            raise Broken(
                f"QEMU {self._binary.argv[0]} is {seen}, at least {oldest} is needed",
                fix="install a newer one on that host, or name it as qemu.argv in its agent.toml",
            )
        return facts

    async def query_cpu(self, cpu: str, machine: str, acceleration: Acceleration) -> CpuAnswer:
        """Return what QEMU says about a `-cpu` text (without `enforce`).

        Raises:
            Broken: QEMU refuses the text; in its own words.
        """
        key = self._key("cpu", acceleration, machine, cpu)
        answer = self._cache.get(key)
        if answer is None:
            argv = ["-machine", machine, *_accel(acceleration), "-cpu", cpu]
            async with probe_session(self._binary, argv) as session:
                answer = await _ask_cpu(session, cpu.partition(",")[0])
            self._cache.put(key, answer)
        return CpuAnswer(answer["model"], answer["expanded"], tuple(answer["unavailable"]))

    def _key(self, *parts: str) -> str:
        return "|".join((str(FORMAT), self._binary.identity(), read_boot_id(), *parts))


@contextlib.asynccontextmanager
async def probe_session(binary: QemuBinaryConfig, argv: Sequence[str]) -> AsyncIterator[QmpSession]:
    """Start a QEMU that runs no guest, talk to it over an inherited socket, and end it whatever happens.

    Raises:
        Broken: it does not start; in its own words.
    """
    common = ["-nodefaults", "-no-user-config", "-display", "none", "-S", "-sandbox", SANDBOX]
    session = QmpSession("probe")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmferry-probe-")))
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        with theirs:
            fd = theirs.fileno()
            monitor = ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]
            log = directory / "log"
            process = spawn(binary, [*common, *argv, *monitor], directory=directory, log=log, fds=(fd,))
        stack.callback(process.close)
        try:
            try:
                await session.connect(ours, process)
            except Broken as error:
                words = log.read_text("utf-8", errors="replace").strip().replace("\n", " | ")
                raise Broken(
                    f"QEMU {binary.argv[0]} does not start: {words or error.what}",
                    fix="repair it on that host, or name another one as qemu.argv in its agent.toml",
                ) from error
            yield session
        finally:
            await session.close()
            await process.kill()


def _accel(acceleration: Acceleration) -> list[str]:
    return ["-accel", "kvm" if acceleration is Acceleration.KVM else "tcg"]


async def _ask_facts(session: QmpSession) -> dict[str, Any]:
    version = (await session.execute("query-version"))["qemu"]
    machines = await session.execute("query-machines")
    models = await session.execute("query-cpu-definitions")
    capabilities = await session.execute("query-migrate-capabilities")
    return {
        "version": [version["major"], version["minor"], version["micro"]],
        "machines": sorted(m["name"] for m in machines if VERSIONED_MACHINE.fullmatch(m["name"])),
        "cpu_models": sorted(m["name"] for m in models if _is_usable(m)),
        "capabilities": sorted(row["capability"] for row in capabilities),
        "parameters": sorted(await session.execute("query-migrate-parameters")),
        "compressions": _compressions(await session.execute("query-qmp-schema")),
        "objects": [name for name, properties in _OBJECTS.items() if await _has_object(session, name, properties)],
        "devices": [name for name in sorted(DRIVERS) if await _has_driver(session, name)],
    }


async def _has_object(session: QmpSession, name: str, properties: Mapping[str, object]) -> bool:
    """Tell whether QEMU can make an object; the word alone is there also where it was built without the library."""
    try:
        await session.execute("object-add", {"id": name, **properties})
    except SaidNo:
        return False
    return True


async def _has_driver(session: QmpSession, name: str) -> bool:
    """Tell whether QEMU has a driver.

    Asked one by one: `qom-list-types` loads every module that QEMU finds, also those of another QEMU that is installed
    on the host, and 10.0 aborts on them ("Only modules from the same build can be loaded").

    Raises:
        Broken: QEMU is gone: that says nothing of the driver.
    """
    try:
        await session.execute("device-list-properties", {"typename": name})
    except SaidNo:
        return False
    return True


def _compressions(schema: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how multifd channels can compress; the schema has what this QEMU was built with, under made-up names."""
    types = {each["name"]: each for each in schema}
    members = (member for each in schema for member in each.get("members", ()) if isinstance(member, dict))
    found = next((types[m["type"]] for m in members if m.get("name") == COMPRESSION_PARAMETER), {"values": ()})
    return sorted(value for value in found["values"] if value != NO_COMPRESSION)


def _is_usable(model: Mapping[str, Any]) -> bool:
    return model["name"] not in UNMIGRATABLE_MODELS and not model.get("unavailable-features")


def _facts(answer: Mapping[str, Any]) -> QemuFacts:
    major, minor, micro = answer["version"]
    sets = ("machines", "cpu_models", "capabilities", "parameters", "devices", "compressions", "objects")
    return QemuFacts(version=(major, minor, micro), **{name: frozenset(answer[name]) for name in sets})


async def _ask_cpu(session: QmpSession, model: str) -> dict[str, Any]:
    models = await session.execute("query-cpu-definitions")
    aliases = {row["name"]: row.get("alias-of", row["name"]) for row in models}
    expansion = await session.execute("query-cpu-model-expansion", {"type": "static", "model": {"name": model}})
    cpus = await session.execute("query-cpus-fast")
    path = cpus[0]["qom-path"]
    missing = await session.execute("qom-get", {"path": path, "property": "unavailable-features"})
    return {
        "model": aliases.get(model, model),
        "expanded": expansion["model"]["props"],
        "unavailable": sorted(set(missing)),
    }

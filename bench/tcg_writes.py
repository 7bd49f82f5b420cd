"""Does QEMU lose a TCG guest's writes while it copies its memory? By plain QMP, without any of our own code.

    ./run bench tcg_writes [--runs 6]

The micro guest writes 40 MiB/s over 16 MiB and keeps its own oracle; the stream gets 60 MiB/s, so that there are
several rounds. For each QEMU (7.2, 10.0), both kinds of TCG threads, running and paused for the move.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from _bench import conditions, conditions_text, table, write
from _plain import plain_qemu
from qemu.qmp import QMPClient

from vmferry.core.units import MIB
from vmferry.lab.guests.build import build
from vmferry.lab.toolchain import QemuBinary, cache_dir, find_qemu

CAPABILITIES = [{"capability": name, "state": True} for name in ("events", "return-path", "pause-before-switchover")]
STREAM = "tcp:127.0.0.1:49399"
PARAMETERS = {"max-bandwidth": 60 * MIB, "downtime-limit": 20}


@contextlib.asynccontextmanager
async def guest(qemu: QemuBinary, threads: str, folder: Path, *extra: str) -> AsyncIterator[QMPClient]:
    """Run the micro guest, set up for a move; its console is the socket `serial` in its folder."""
    image = await asyncio.to_thread(build, "micro", cache_dir())
    await asyncio.to_thread(folder.mkdir)
    argv = [
        *qemu.argv,
        *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc-q35-7.2", "-cpu", "qemu64"),
        *("-accel", f"tcg,thread={threads}", "-m", "64", "-kernel", str(image.kernel)),
        *("-append", image.append(mb=16, rate=40), "-serial", f"unix:{folder}/serial,server=on,wait=off"),
        *extra,
    ]
    async with plain_qemu(argv, folder / "qmp", {**os.environ, **qemu.env}) as qmp:
        await qmp.execute("migrate-set-capabilities", {"capabilities": CAPABILITIES})
        await qmp.execute("migrate-set-parameters", PARAMETERS)
        yield qmp


async def oracle(folder: Path) -> str:
    """Ask a guest whether each page holds what was last written."""
    reader, writer = await asyncio.open_unix_connection(str(folder / "serial"))
    try:
        writer.write(b"o")
        async with asyncio.timeout(20):
            return (await reader.readuntil(b"\n")).decode().strip()
    except TimeoutError:
        return "oracle silent: the guest hangs"
    finally:
        writer.close()


async def move(qemu: QemuBinary, threads: str, *, paused: bool) -> tuple[int, str]:
    """Move the guest once; returns the rounds and the oracle's word."""
    with tempfile.TemporaryDirectory(prefix="vmferry-bench-") as name:
        here, there = Path(name, "source"), Path(name, "destination")
        async with (
            guest(qemu, threads, here) as source,
            guest(qemu, threads, there, "-incoming", "defer") as destination,
        ):
            await destination.execute("migrate-incoming", {"uri": STREAM})
            await asyncio.sleep(1.0)  # the guest boots and writes
            if paused:
                await source.execute("stop")
            rounds = await _sent(source)
            if paused:
                await destination.execute("cont")
            await asyncio.sleep(0.2)
            return rounds, await oracle(there)


async def _sent(source: QMPClient) -> int:
    """Have the guest sent; returns the rounds that it took."""
    await source.execute("migrate", {"uri": STREAM})
    while True:
        info: dict[str, Any] = await source.execute("query-migrate")  # type: ignore[assignment]
        if info["status"] == "pre-switchover":
            await source.execute("migrate-continue", {"state": "pre-switchover"})
        if info["status"] in {"completed", "failed"}:
            return int(info["ram"]["dirty-sync-count"])
        await asyncio.sleep(0.02)


async def measure(runs: int) -> list[tuple[str, str, str, int, int, str]]:
    """Return a row per case; the cases take turns."""
    versions = {"7.2": find_qemu(7, 2), "10.0": find_qemu(10, 0)}
    cases = [
        (name, threads, paused) for name in versions for threads in ("multi", "single") for paused in (False, True)
    ]
    seen: dict[tuple[str, str, bool], list[tuple[int, str]]] = {case: [] for case in cases}
    for _ in range(runs):
        for case in cases:
            name, threads, paused = case
            found = await move(versions[name], threads, paused=paused)
            seen[case].append(found)
            print(name, threads, "paused" if paused else "running", *found, flush=True)
    return [
        (
            f"{name} ({'.'.join(map(str, versions[name].version))})",
            threads,
            "paused" if paused else "running",
            len(found),
            sum("clean" not in word for _, word in found),
            f"{min(rounds for rounds, _ in found)}-{max(rounds for rounds, _ in found)}",
        )
        for (name, threads, paused), found in seen.items()
    ]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=6)
    runs = parser.parse_args().runs
    began = time.monotonic()
    rows = asyncio.run(measure(runs))
    found = conditions(f"./run bench tcg_writes --runs {runs}", "TCG", "7.2 and 10.0", time.monotonic() - began)
    header = ("QEMU", "TCG threads", "guest", "moves", "arrived with lost writes", "rounds")
    page = (
        "# QEMU 7.2 under TCG loses writes while it copies memory\n\n"
        + conditions_text(found)
        + "\nPlain QMP, source and destination of the same version, micro guest writing 40 MiB/s, stream of 60 MiB/s;"
        " the guest's own oracle is asked after the move.\n\n"
        + table(header, rows)
        + "\nSo `vmferry check` has the blocker `qemu.tcg-loses-writes` for a running TCG guest on such a source. KVM"
        " has a dirty log of its own and is not concerned.\n"
    )
    write("tcg_writes", {"conditions": found, "rows": [dict(zip(header, row, strict=True)) for row in rows]}, page)


if __name__ == "__main__":
    main()

"""A built-in guest that runs in a lab: started, moved, asked, through the real commands."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmferry.api.models import GuestList, GuestView, HandoverList, HandoverView
from vmferry.core.errors import Broken, TimedOut
from vmferry.core.progress import Report
from vmferry.lab.channel import ask, send
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guests import GuestImage, build
from vmferry.lab.guests.debian import personal_disk
from vmferry.lab.toolchain import cache_dir

if TYPE_CHECKING:
    from vmferry.lab.hosts import Lab, LabHost

READY_TIMEOUT_S = 90.0
DEBIAN_READY_TIMEOUT_S = 300.0  # firmware, boot loader, systemd


class GuestRun:
    """One guest of a lab, and where it runs as far as the test knows."""

    def __init__(self, lab: Lab, plan: GuestPlan, host: str) -> None:
        self._lab = lab
        self.plan = plan
        self.host = host

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.plan.name

    @classmethod
    async def start(cls, lab: Lab, plan: GuestPlan, host: str) -> Self:
        """Build the guest's image if needed, write its file, run it on a host.

        Raises:
            Broken: the command refused.
        """
        image = await asyncio.to_thread(build, plan.kind, cache_dir())
        if plan.kind == "debian":
            made = lab.hosts[host].local_dir if plan.local else lab.directory
            image = await asyncio.to_thread(_personal, image, plan, made)
            if plan.local:
                image = replace(image, disks=(lab.local / image.disks[0].name,), nvram=_seen(image.nvram, lab.local))
        file = lab.directory / f"{plan.name}.toml"
        file.write_text(plan.toml(image), "utf-8")
        await lab.must(host, "guest", "run", str(file), "--on", host)
        return cls(lab, plan, host)

    def moved_to(self, host: str) -> None:
        """Take note of where the guest runs now."""
        self.host = host

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the workload works.

        Raises:
            TimedOut: it does not; the error has the end of the guest's console.
        """
        usual = DEBIAN_READY_TIMEOUT_S if self.plan.kind == "debian" else READY_TIMEOUT_S
        deadline = time.monotonic() + (timeout_s or usual)
        while True:
            try:
                await (self.oracle(2.0) if self.plan.kind == "micro" else self.ask("status", "ready", 10.0))
            except (TimedOut, Broken) as error:
                if time.monotonic() > deadline:
                    raise TimedOut(f"Guest {self.name} is not ready: {error}; console: {self.console()}") from error
                await asyncio.sleep(0.05)
            else:
                return

    async def oracle(self, timeout_s: float = 60.0) -> str:
        """Return what the guest says about its memory: "oracle clean ..." or "oracle DIRTY ..."."""
        return await self.ask("oracle", "oracle", timeout_s)

    async def disk(self, timeout_s: float = 60.0) -> str:
        """Return what the linux guest reads back from its disk: "disk clean ..." or "disk DIRTY ..."."""
        return await self.ask("disk", "disk", timeout_s)

    async def ask(self, question: str, prefix: str, timeout_s: float = 60.0) -> str:
        """Ask the guest on the host on which it runs; the micro guest knows single letters."""
        if self.plan.kind == "micro":
            return await ask(self._socket("console.sock"), question[0], prefix, timeout_s)
        return await ask(self._socket("control.sock"), f"{question}\n", prefix, timeout_s)

    async def shell(self, command: str, timeout_s: float = 90.0) -> str:
        """Run a command in the debian guest, where root is logged in on the console; return its first line.

        Raises:
            TimedOut: it has no answer, or nobody is logged in yet.
        """
        # The terminal echoes what is typed, and the shell prints control characters before an answer: the mark is
        # whole, and at the start of a line, only in the answer.
        typed = f"printf '\\nmar''ked %s\\n' \"$({command} | head -n 1)\"\n"
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return (await ask(self._socket("console.sock"), typed, "marked", 5.0)).removeprefix("marked").strip()
            except TimedOut:  # what is typed before the login is lost
                if time.monotonic() > deadline:
                    raise

    async def tell(self, order: str) -> None:
        """Give the guest an order that has no answer: "reboot", "poweroff"; the micro guest takes its first letter."""
        micro = self.plan.kind == "micro"
        await send(self._socket("console.sock" if micro else "control.sock"), order[0] if micro else f"{order}\n")

    async def view(self, host: str | None = None) -> GuestView:
        """Return the guest as a host's agent sees it."""
        return GuestView.model_validate(await self._on(host or self.host).api.get(f"/v1/guests/{self.name}"))

    async def list_on(self, host: str) -> list[GuestView]:
        """Return what a host lists under this guest's name: one entry or none."""
        found = GuestList.model_validate(await self._on(host).api.get("/v1/guests"))
        return [view for view in found.guests if view.name == self.name]

    async def handovers(self, host: str) -> list[HandoverView]:
        """Return the guest's hand-overs that a host knows, newest first."""
        found = HandoverList.model_validate(await self._on(host).api.get("/v1/handovers"))
        return [view for view in found.handovers if view.guest == self.name]

    async def last_report(self, source: str) -> Report:
        """Return the report of the newest hand-over from a host.

        Raises:
            Broken: there is none.
        """
        newest = next((view for view in await self.handovers(source) if view.side == "source"), None)
        if newest is None or newest.report is None:
            raise Broken(f"Host {source} has no report of a hand-over of guest {self.name}")
        return newest.report

    def console(self, characters: int = 400) -> str:
        """Return the end of what the guest wrote to its console on its present host."""
        logs = list(self._on(self.host).run_dir.rglob(f"{self.name}/console.log"))
        return logs[0].read_text("utf-8", "replace")[-characters:] if logs else "(nothing)"

    def _socket(self, name: str) -> Path:
        found = list(self._on(self.host).run_dir.rglob(f"{self.name}/{name}"))
        if not found:
            raise Broken(f"Guest {self.name} has no {name} on {self.host}")
        return found[0]

    def _on(self, host: str) -> LabHost:
        return self._lab.hosts[host]


def _seen(made: Path | None, folder: Path) -> Path | None:
    """Return a file where a host sees it."""
    return None if made is None else folder / made.name


def _personal(image: GuestImage, plan: GuestPlan, folder: Path) -> GuestImage:
    """Return the debian guest's image with a disk and variables of its own, on paths that all hosts see."""
    disk, nvram = folder / f"{plan.name}.qcow2", folder / f"{plan.name}.fd"
    personal_disk(image, disk, nvram, **plan.settings())
    return replace(image, disks=(disk,), nvram=nvram)

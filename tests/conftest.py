"""Fixtures for every test: what is missing is said with its remedy, and nothing may leak.

Labs are swept before and after each run: what a killed run left behind is removed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from asyncio import runners
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from vmferry.lab.hosts import Lab
from vmferry.lab.network import namespaces_missing
from vmferry.lab.processes import command_line, identify
from vmferry.lab.registry import sweep


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remove the labs that killed runs left behind."""
    sweep()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove what a crashed worker of this run left behind."""
    sweep()


def qemu_missing() -> str | None:
    """Return why no real QEMU can be started here, with the remedy."""
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64 is not installed: ./run test installs it (apt-get install qemu-system-x86)"
    return None


REQUIREMENTS: dict[str, Callable[[], str | None]] = {"real": qemu_missing, "root": namespaces_missing}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here; the reason says what is missing and how to get it."""
    for name, missing in REQUIREMENTS.items():
        if item.get_closest_marker(name) and (reason := missing()):
            pytest.skip(reason)


#: How much of each log a failed test shows.
_LOG_LINES = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a lab's agents and QEMUs said beside a failed test; they are gone when somebody asks."""
    report = yield
    if report.when == "call" and report.failed:
        labs = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Lab)]
        for name, log in sorted({(name, log) for lab in labs for name, log in lab.logs()}):
            text = "\n".join(log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])
            if text:
                report.sections.append((f"{name}: {log.parent.name}/{log.name}", text))
    return report


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a child process, a socket, another descriptor or an asyncio task behind.

    Fixtures of a wider scope are set up before this one, so what they opened is theirs. A test that uses a shared
    `lab` is compared by the lab itself: its agents and guests come and go during the tests.
    """
    monkeypatch.setattr(runners, "_cancel_all_tasks", _cancel_and_tell)
    before = _open_things()
    yield
    if {"lab", "mixed_lab"} & set(request.fixturenames):
        return
    if leaked := _open_things() - before:
        gc.collect()  # an object in a reference cycle is closed late, not leaked
        leaked = _open_things() - before
    assert not leaked, f"left behind by this test: {sorted(leaked)}"


_cancel_all_tasks: Callable[[asyncio.AbstractEventLoop], None] = runners._cancel_all_tasks  # type: ignore[attr-defined]


def _cancel_and_tell(loop: asyncio.AbstractEventLoop) -> None:
    """Take the place of what a closing event loop does with its last tasks: there must be none."""
    left = [repr(task) for task in asyncio.all_tasks(loop)]
    _cancel_all_tasks(loop)
    assert not left, f"tasks left behind by this test: {left}"


def _open_things() -> set[str]:
    return _open_descriptors() | _child_processes()


def _open_descriptors() -> set[str]:
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"descriptor {path.name}: {path.readlink()}")
        except OSError:
            continue  # the descriptor of this very listing
    return found


def _child_processes() -> set[str]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii")
    return {f"process {pid}: {command_line(pid)}" for pid in map(int, text.split()) if identify(pid) is not None}

"""QEMU's own RDMA stream between two hosts: what works, and what it does to the guest when the link breaks.

These are the facts behind the rules for `rdma` (core/capabilities/rules.py, docs/design/streams.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.nested import rdma
from tests.nested.qemus import PID_FILE, end_qemus
from tests.nested.rdma import ask, by_rdma, capabilities, migration
from tests.qemus import VERSIONS, find_or_skip

from vmferry.core.errors import Broken
from vmferry.lab.nested import NestedHost, NestedLab
from vmferry.lab.nested.rdma import add_device, remove_device
from vmferry.lab.scenarios import wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]

ONE_WAY = ("events", "pause-before-switchover", "late-block-activate")
WITH_ANSWERS = (*ONE_WAY, "return-path")
SLOW: dict[str, object] = {"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 1 << 20}}
GO_ON: dict[str, object] = {"execute": "migrate-continue", "arguments": {"state": "pre-switchover"}}
BY_QEMU = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"qemu{version[0]}")


@pytest_asyncio.fixture(loop_scope="session")
async def hosts(lab: NestedLab) -> AsyncIterator[tuple[NestedHost, NestedHost]]:
    """Both hosts, up and joined; afterwards without QEMUs and RDMA devices."""
    host_a, host_b = lab.hosts.values()
    for host in (host_a, host_b):
        if not host.is_up:
            await host.start()
        await add_device(host)
    yield host_a, host_b
    await host_a.set_link(up=True)
    for host in (host_a, host_b):
        await host.shell(f"[ ! -e {PID_FILE} ] || kill -9 $(cat {PID_FILE}); rm -f {PID_FILE}")
        await end_qemus(host)
        await remove_device(host)


async def begin(
    hosts: tuple[NestedHost, NestedHost], version: tuple[int, int], on: tuple[str, ...], *limits: dict[str, object]
) -> None:
    """Let a guest of host-a begin to move to host-b."""
    host_a, host_b = hosts
    for host in hosts:
        await rdma.start_qemu(host, find_or_skip(version), arrives=host is host_b)
    answers = await ask(host_b, capabilities(on), by_rdma("migrate-incoming", host_b))
    answers += await ask(host_a, capabilities(on), *limits, by_rdma("migrate", host_b))
    assert not [answer for answer in answers if "error" in answer], answers


async def wait_status(host: NestedHost, *wanted: str) -> dict[str, object]:
    """Wait until QEMU gives the migration one of these states."""
    seen: dict[str, object] = {}

    async def is_there() -> bool:
        seen.update(await migration(host))
        return seen.get("status") in wanted

    await wait_until(is_there, f"the migration is {' or '.join(wanted)}", timeout_s=90)
    return seen


@BY_QEMU
async def test_a_guest_arrives_without_a_way_back(
    hosts: tuple[NestedHost, NestedHost], version: tuple[int, int]
) -> None:
    """Both sides say that it is done; the memory has gone, not only its size."""
    await begin(hosts, version, ONE_WAY)
    await wait_status(hosts[0], "pre-switchover")
    await ask(hosts[0], GO_ON)
    done = await wait_status(hosts[0], "completed", "failed")
    assert done["status"] == "completed", done
    there = await wait_status(hosts[1], "completed", "failed")
    assert there["status"] == "completed", there
    ram = done["ram"]
    assert isinstance(ram, dict)
    assert ram["normal"] * 4096 >= rdma.CONTENT_MIB << 20


async def test_the_old_one_has_no_way_back(hosts: tuple[NestedHost, NestedHost]) -> None:
    """QEMU 7.2 takes the capability, and then the stream fails as it begins."""
    await begin(hosts, (7, 2), WITH_ANSWERS)
    await wait_status(hosts[0], "failed")


async def cut(hosts: tuple[NestedHost, NestedHost]) -> None:
    """Unplug the cable while memory is sent, and wait until QEMU has seen that nothing goes."""
    await wait_status(hosts[0], "active")
    await hosts[0].set_link(up=False)
    await hosts[0].shell(f"until grep -q 'send polling control error' {rdma.LOG}; do sleep 0.2; done", timeout_s=90)


@BY_QEMU
async def test_a_broken_link_without_a_way_back_is_a_failure(
    hosts: tuple[NestedHost, NestedHost], version: tuple[int, int]
) -> None:
    """The source's QEMU says so and is as alive as before."""
    await begin(hosts, version, ONE_WAY, SLOW)
    await cut(hosts)
    await wait_status(hosts[0], "failed")
    (answer,) = await ask(hosts[0], {"execute": "query-status"})
    assert answer["return"]["status"] == "prelaunch"


async def test_a_broken_link_with_a_way_back_hangs_the_source(hosts: tuple[NestedHost, NestedHost]) -> None:
    """QEMU 10.0 waits for the destination's answer with its main loop; nor does it end when the link is back."""
    await begin(hosts, (10, 0), WITH_ANSWERS, SLOW)
    await cut(hosts)
    await hangs(hosts[0])
    await hosts[0].set_link(up=True)
    await hangs(hosts[0])


async def hangs(host: NestedHost) -> None:
    """A QEMU does not answer for 10 s."""
    with pytest.raises(Broken, match="TimeoutError: timed out"):
        await migration(host)


async def test_a_host_without_a_device_is_told(hosts: tuple[NestedHost, NestedHost]) -> None:
    """The destination refuses to listen, and the source to send, before anything has moved."""
    for host in hosts:
        await remove_device(host)
        await rdma.start_qemu(host, find_or_skip((10, 0)), arrives=host is hosts[1])
    for host, command in zip(hosts, ("migrate", "migrate-incoming"), strict=True):
        (answer,) = await ask(host, by_rdma(command, hosts[1]))
        assert "RDMA ERROR: could not create" in answer["error"]["desc"]

"""`auto`: the guest's own pages decide, and what cannot be found out decides for none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.conductor.fakes import WatchedLink, qemu_of
from tests.conductor.pair import Host, wait_finished

from vmferry.conductor.rows import request_of
from vmferry.core.capabilities import Compression, StreamWish, Transport
from vmferry.core.errors import Broken
from vmferry.core.handover.states import SourceState
from vmferry.core.units import BytesPerSecond
from vmferry.testing.fake_hypervisor import FAKE_FACTS, FakeHypervisor

AUTO = StreamWish(compression=Compression.AUTO)
SLOW = BytesPerSecond(1_250_000)


async def test_the_pages_decide(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """On a slow link pages that shrink are compressed; journal, QEMUs and reason agree."""
    here, there = hosts
    here.hold.ask(SourceState.PRECOPY)
    source = await here.migrate(there, stream=AUTO, bandwidth=SLOW)
    await here.hold.wait_reached(SourceState.PRECOPY)
    row = here.journal.handover(source.request.handover, "source")
    assert row is not None
    assert request_of(row).compression == source.request.compression != Compression.NONE
    qemu = qemu_of(there, link)
    assert qemu is not None
    assert qemu.setup is not None
    assert qemu.setup.parameters["multifd-compression"] == source.request.compression
    assert source.compression_why is not None
    assert "makes a sample of 512 pages" in source.compression_why
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)


async def test_an_unknown_link_is_no_reason_to_compress(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """One stream as it is, and the reason is told."""
    here, there = hosts
    source = await here.migrate(there, stream=AUTO)
    await wait_finished(here, there)
    assert (source.request.compression, source.request.channels) == (Compression.NONE, None)
    assert source.compression_why == "nobody knows how fast the link is; `vmferry host probe` measures it"


@pytest.mark.parametrize(
    ("postcopy", "stream", "why"),
    [
        (True, AUTO, "postcopy-ram excludes multifd"),
        (False, replace(AUTO, link=Transport.FD), "fd excludes multifd"),
        (False, replace(AUTO, pipeline="zstd"), "pipe excludes multifd"),
    ],
)
async def test_what_excludes_channels_decides_for_none(
    hosts: tuple[Host, Host], postcopy: bool, stream: StreamWish, why: str
) -> None:
    """Left to us, it is no blocker: the guest moves without."""
    here, there = hosts
    source = await here.migrate(there, stream=stream, bandwidth=SLOW, postcopy=postcopy)
    await wait_finished(here, there)
    assert source.request.compression == Compression.NONE
    assert source.compression_why is not None
    assert why in source.compression_why
    assert source.blockers == ()


async def test_hosts_and_pages_that_cannot_be_asked(hosts: tuple[Host, Host]) -> None:
    """QEMUs with nothing in common, and memory that cannot be read: none, with the reason."""
    here, there = hosts
    here.qemus = (FAKE_FACTS, replace(FAKE_FACTS, compressions=frozenset()))
    source = await here.migrate(there, stream=AUTO, bandwidth=SLOW)
    await wait_finished(here, there)
    assert source.compression_why == "the two QEMUs have no compression in common"
    assert isinstance(there.hypervisor, FakeHypervisor)
    there.hypervisor.refuse_next("sample_memory", Broken("memory cannot be sampled"))
    there.link = SLOW
    source = await there.migrate(here, stream=AUTO)
    await wait_finished(there, here)
    assert source.compression_why == "memory cannot be sampled"

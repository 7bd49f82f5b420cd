"""Streams through commands of both hosts, between two real agents."""

from __future__ import annotations

import pytest
from tests.real.test_streams import assert_arrived

from vmferry.core.progress import Outcome
from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import Scenario, move, remove, run_scenario, started

pytestmark = [pytest.mark.real, pytest.mark.root]

ZSTD = {"send": ["zstd", "-1", "-c"], "receive": ["zstd", "-d", "-c"]}
GARBLES = {"send": ["sh", "-c", "head -c 3000000; kill -9 $$"], "receive": ["cat"]}
SETTINGS = {"migration": {"pipelines": {"zstd": ZSTD, "garbles": GARBLES}}}


async def test_through_commands_of_both_hosts() -> None:
    """A guest arrives whole through a compressor; through one that dies it stays, and can be moved afterwards."""
    async with Lab(settings=dict.fromkeys(("host-a", "host-b"), SETTINGS)) as lab:
        legs = await run_scenario(lab, Scenario(micro_guest(), options={"pipeline": "zstd", "plain": True}))
        assert_arrived(legs)
        assert [(leg.report.link, leg.report.pipeline) for leg in legs] == [("pipe", "zstd")] * 2
        guest = await started(lab, micro_guest())
        for pipeline in ("garbles", "zstd"):
            leg = await move(lab, guest, "host-b", {"pipeline": pipeline, "plain": True})
            assert leg.oracle.startswith("oracle clean"), leg.report
            assert leg.report.outcome == (Outcome.ABORTED if pipeline == "garbles" else Outcome.MOVED), leg.report
        leg = await move(lab, guest, "host-a", {"pipeline": "zstd"})
        assert leg.report.outcome == Outcome.BLOCKED
        await remove(lab, guest)

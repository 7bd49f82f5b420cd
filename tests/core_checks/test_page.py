"""The page about the checks knows every code."""

from __future__ import annotations

import re
from pathlib import Path

from tests.core_checks import test_certificates, test_leases, test_rdma
from tests.core_checks import test_fixed_images as fixed
from tests.core_checks.test_blockers import CASES
from tests.core_checks.test_copies import AGAINST, BESIDE_PIPELINE
from tests.core_checks.test_pipeline import CLEAR, MISSING

PAGE = Path(__file__).parents[2] / "docs" / "checks.md"
CODE = re.compile(r"`([a-z]+\.[a-z-]+)`")


def test_the_table_has_every_code_that_the_checks_give() -> None:
    """A code in a test of the checks is a row of the page, and the page's table names none that has no test."""
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    told = {code for line in table for code in CODE.findall(line.split("|")[1])}
    tested = {code for _, code, _, _ in CASES.values()} | {"device.not-migratable", CLEAR, MISSING}
    tested |= {f"{kind}.{code}" for kind in ("disk", "nvram") for code in AGAINST} | {BESIDE_PIPELINE}
    tested |= {*fixed.AGAINST, *fixed.AGAINST_COPIES}
    tested |= {test_certificates.MISSING, test_certificates.NO_QEMU}
    tested |= {test_certificates.EXPIRED.code, test_certificates.DISTRUSTED.code}
    tested |= {test_leases.ONE_HOST, test_leases.UNREADY, test_leases.OTHER, test_leases.SAME_ID}
    tested |= {test_leases.NOT_SEEN, test_leases.NOT_HELD, test_rdma.MISSING, test_rdma.CLEAR}
    assert tested <= told
    elsewhere = {"nvram.not-readable", "nvram.not-writable", "throttle.no-port", "throttle.no-helper"}
    assert told - tested <= elsewhere

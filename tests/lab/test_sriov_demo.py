"""The demonstration of SR-IOV: the guest has a function at both ends, and all of it is gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vmferry.lab.demo import parse
from vmferry.lab.registry import all_labs


def test_goes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes none of the other demonstration's options."""
    assert parse(["--sriov"]).sriov
    for other in (["--keep"], ["--plain"], ["--link", "100"]):
        with pytest.raises(SystemExit):
            parse(["--sriov", *other])
    assert "--sriov goes alone" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.root
@pytest.mark.nested
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("nested")
def test_there_and_back() -> None:
    """Its exit code says that the memory was whole, igbvf in use at both ends, and the gap not much longer."""
    before = {lab.id for lab in all_labs()}
    ran = subprocess.run(
        [sys.executable, "-m", "vmferry.lab.demo", "--sriov"],
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
        env={**os.environ, "COLUMNS": "160"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("oracle clean") >= 3
    assert {lab.id for lab in all_labs()} == before

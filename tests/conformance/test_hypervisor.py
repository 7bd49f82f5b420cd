"""Every Hypervisor passes the kit: the fake, and real QEMU of each version."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.qemus import binary_of

from vmferry.core.guest import Acceleration, Disk
from vmferry.qemu import QemuHypervisor
from vmferry.testing.conformance_hypervisor import ADDRESS, Bench, HypervisorConformance
from vmferry.testing.conformance_postcopy import PostcopyConformance
from vmferry.testing.fake_hypervisor import FakeHypervisor, FakeLink


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of probes are asked for once."""
    return tmp_path_factory.mktemp("state")


class TestFake(HypervisorConformance, PostcopyConformance):
    @pytest.fixture
    async def bench(self) -> AsyncIterator[Bench]:
        """Two fake hosts on one link."""
        link = FakeLink()
        bench = Bench(
            FakeHypervisor("host-a", link), FakeHypervisor("host-b", link), Path("/run"), Disk("/shared/web-7.qcow2")
        )
        yield bench
        await bench.end()

    def occupy(self, bench: Bench, port: int) -> None:
        """The fake has no sockets."""
        assert isinstance(bench.destination, FakeHypervisor)
        bench.destination.link.taken_ports.add((ADDRESS, port))


class RealConformance(HypervisorConformance, PostcopyConformance):
    version: tuple[int, int]

    @pytest.fixture
    def hypervisor(self, state_dir: Path) -> QemuHypervisor:
        """This machine's QEMU of that version."""
        return QemuHypervisor(binary_of(self.version), Acceleration.TCG, state_dir=state_dir)

    @pytest.fixture
    def image(self, tmp_path: Path) -> Disk:
        """An image that both hosts see."""
        path = tmp_path / "web-7.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M"], check=True)
        return Disk(str(path), cache="writeback")

    @pytest.fixture
    async def bench(self, hypervisor: QemuHypervisor, image: Disk) -> AsyncIterator[Bench]:
        """Two hosts on this machine; their sockets need a short path."""
        with tempfile.TemporaryDirectory(prefix="vmf-") as directory:
            bench = Bench(hypervisor, hypervisor, Path(directory), image)
            yield bench
            await bench.end()


@pytest.mark.real
class TestQemu100(RealConformance):
    version = (10, 0)


@pytest.mark.real
class TestQemu72(RealConformance):
    version = (7, 2)

"""The host's devices in a running QEMU: plugged in by VFIO, and given up by the guest.

Source: QEMU qapi/qdev.json (device_add, device_del, DEVICE_DELETED, DEVICE_UNPLUG_GUEST_ERROR), qom-list of
/machine/peripheral, system/qdev-monitor.c; tried on 10.0 in a nested host.
"""

from __future__ import annotations

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.pci_devices import VFIO
from vmferry.core.units import GIB, Bytes
from vmferry.qemu.qmp import QmpSession, SaidNo
from vmferry.qemu.rdma import LockedMemory

#: VFIO pins the guest's memory: a second for every GiB where pages must be cleared first.
_PLUG_TIMEOUT_S, _PER_GIB_S = 60.0, 3.0
_PERIPHERAL = "/machine/peripheral"
#: What QEMU says of a device that the guest was asked to let go, and has not answered about.
_ASKED = "already in the process of unplug"


class QemuPlugs:
    """Devices of one process.

    Args:
        session: to it.
        memory: how much it may lock.
        memory_bytes: how much its guest has.
    """

    def __init__(self, session: QmpSession, memory: LockedMemory, memory_bytes: Bytes) -> None:
        self._session = session
        self._memory = memory
        self._plug_timeout_s = _PLUG_TIMEOUT_S + _PER_GIB_S * memory_bytes / GIB

    async def plug(self, claim: DeviceClaim) -> None:
        """Give the guest a device of the host."""
        self._memory.allow_devices()
        device = {"driver": VFIO, "id": claim.id, "host": str(claim.address), "bus": claim.port}
        await self._session.execute("device_add", device, self._plug_timeout_s)

    async def unplug(self, device: str) -> None:
        """Ask the guest to let a device go."""
        try:
            await self._session.execute("device_del", {"id": device})
        except SaidNo as error:
            if _ASKED not in error.what:
                raise

    async def plugged(self) -> frozenset[str]:
        """Return the ids of all devices that have one."""
        rows = await self._session.execute("qom-list", {"path": _PERIPHERAL})
        return frozenset(row["name"] for row in rows if str(row["type"]).startswith("child<"))

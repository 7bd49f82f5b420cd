"""The reference driver: QEMU, started, driven and watched by ourselves over QMP.

`QemuHypervisor` implements `ports.hypervisor.Hypervisor`. docs/design/qemu-driver.md says why it is built as it is.
"""

from vmferry.qemu.acceleration import Verdict, decide
from vmferry.qemu.binary import QemuBinaryConfig
from vmferry.qemu.guest_process import QemuGuestProcess
from vmferry.qemu.hypervisor import QemuHypervisor

__all__ = ["QemuBinaryConfig", "QemuGuestProcess", "QemuHypervisor", "Verdict", "decide"]

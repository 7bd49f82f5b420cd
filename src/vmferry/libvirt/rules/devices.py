"""Devices that a guest file does not know.

Source: libvirt docs/formatdomain.rst (9.0), section Devices.
"""

from __future__ import annotations

from vmferry.libvirt.findings import STAY
from vmferry.libvirt.rules.rule import Rule, asked, left_out, refused, silent

_HOSTDEV = "a device of the host that the guest has for itself: not yet in this version"
_DETACH = "detach it (virsh detach-device), then import"

RULES: dict[str, Rule] = {
    "devices/emulator": left_out("each host has its QEMU"),
    # what libvirt adds by itself
    "devices/controller[type=pci][model=pcie-root]": silent("every machine has it"),
    "devices/controller[type=pci]": asked("address"),
    "devices/controller[type=sata][index=0]": silent("every machine has it"),
    "devices/controller[type=virtio-serial]": silent("made when a channel needs it"),
    "devices/controller[type=usb][model=none]": silent("as guests have it"),
    "devices/controller[type=usb]": asked("usb"),
    "devices/controller": asked("controller"),
    "devices/memballoon[model=none]": silent("as guests have it"),
    "devices/memballoon": asked("memballoon"),
    "devices/input[type=mouse][bus=ps2]": silent("every machine has it"),
    "devices/input[type=keyboard][bus=ps2]": silent("every machine has it"),
    "devices/input": asked("input"),
    "devices/hub": asked("usb"),
    "devices/redirdev": asked("usb"),
    "devices/redirfilter": left_out("it filters what would be redirected"),
    "devices/graphics": asked("graphics"),
    "devices/video": asked("video"),
    "devices/sound": asked("sound"),
    "devices/audio": left_out("where the host plays the guest's sound"),
    "devices/rng": asked("rng"),
    "devices/watchdog[model=itco]": left_out("every machine has it; what happens when it expires is QEMU's default"),
    "devices/watchdog": asked("watchdog"),
    "devices/panic": silent("every guest has pvpanic"),
    "devices/panic[model=hyperv]": asked("features"),
    "devices/panic[model=pvpanic]": asked("features"),
    # serial ports and channels; the host's end of the first port is settled by consoles.py
    "devices/serial": asked("serial"),
    "devices/parallel": asked("parallel"),
    "devices/console": asked("console"),
    "devices/channel": asked("channel"),
    "devices/serial/source": silent("its host's end: an agent keeps a log and `vmferry guest console`"),
    "devices/serial/log": silent("its host's end: an agent keeps a log and `vmferry guest console`"),
    "devices/serial/protocol": silent("its host's end: an agent keeps a log and `vmferry guest console`"),
    "devices/channel/source": silent("its host's end: the agent's"),
    "devices/channel/log": silent("its host's end: the agent's"),
    "devices/channel/target/@state": silent("whether the guest has it open now"),
    # what others share with the guest
    "devices/hostdev": refused(_HOSTDEV, _DETACH),
    "devices/smartcard": asked("usb"),
    "devices/filesystem": refused("a directory of the host: a guest that moves would leave it behind", _DETACH),
    "devices/shmem": refused("memory shared with another process of the host", _DETACH),
    "devices/memory": refused(
        "a memory module plugged in: not yet in this version", "add it to `<memory>` and take it out"
    ),
    "devices/iommu": asked("iommu"),
    "devices/vsock": asked("vsock"),
    "devices/crypto": asked("crypto"),
    "devices/pstore": refused("a place where the guest keeps its crash logs", "take it out of the XML"),
    "devices/nvram": refused("memory of another architecture", STAY),
    "devices/lease": refused(
        "a lease of a lock manager, by which hosts keep each other off the guest's disks",
        "take it out of the XML when no host of libvirt will start the domain any more",
    ),
    # the TPM's own
    "devices/tpm/backend/@persistent_state": left_out("the agent keeps a TPM's state as long as it has the guest"),
    "devices/tpm/backend/active_pcr_banks": asked("tpm"),
    "devices/tpm/backend/encryption": asked("tpm"),
}

"""What keys say together. Works on the raw document, so that these mistakes come together with all the others.

Every rule tolerates any shape: a key of a wrong type is the model's finding, and no rule says it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vmferry.core.guest import IoPath
from vmferry.core.wanted_devices import PORTS
from vmferry.guestfile.positions import Path

#: (path of the key, what was seen, what is allowed)
Finding = tuple[Path, str, str]

_UEFI_ONLY = ("code", "nvram")
_FUNCTION_ONLY = ("physical_network", "vlan")
_KERNEL_ONLY = ("initrd", "cmdline")


def find_combinations(document: dict[str, Any]) -> Iterator[Finding]:
    """Yield every forbidden combination of keys in a guest file."""
    yield from _boot(document)
    yield from _echo(document)
    for index, nic in _tables(document, "nic"):
        yield from _nic(("nic", index), nic)
        yield from _function(("nic", index), nic)
    yield from _too_many_devices(document)
    for index, disk in _tables(document, "disk"):
        if disk.get("backing") and disk.get("format", "qcow2") != "qcow2":
            yield ("disk", index, "backing"), "backing of a raw image", 'backing only beside format = "qcow2"'
    yield from _repeated_files(document)
    yield from _repeated_macs(document)
    yield from _repeated_ports(document)


def _boot(document: dict[str, Any]) -> Iterator[Finding]:
    boot = document.get("boot")
    if not isinstance(boot, dict):
        return
    firmware = boot.get("firmware")
    if "kernel" in boot and firmware is not None:
        yield ("boot", "firmware"), f"{firmware!r} beside kernel", "either kernel or firmware"
    elif "kernel" not in boot and firmware is None:
        yield ("boot",), "neither kernel nor firmware", 'kernel = "/path", firmware = "uefi" or firmware = "bios"'
    if "kernel" not in boot:
        for key in _KERNEL_ONLY:
            if key in boot:
                yield ("boot", key), f"{key} without kernel", f"{key} only beside kernel"
    yield from _uefi(boot, is_uefi=firmware == "uefi")
    if firmware == "bios" and not document.get("disk"):
        yield ("boot", "firmware"), "'bios' without a disk", "at least one [[disk]]: the BIOS boots from the first"


def _uefi(boot: dict[str, Any], *, is_uefi: bool) -> Iterator[Finding]:
    for key in _UEFI_ONLY:
        if is_uefi and key not in boot:
            yield ("boot", key), "missing", f'an absolute path: firmware = "uefi" needs {" and ".join(_UEFI_ONLY)}'
        if not is_uefi and key in boot:
            yield ("boot", key), f'{key} without firmware = "uefi"', f'{key} only beside firmware = "uefi"'


def _echo(document: dict[str, Any]) -> Iterator[Finding]:
    if "echo" in document and not document.get("nic"):
        yield ("echo",), "echo without a nic", "echo only beside a [[nic]]: that is how it is reached"


def _nic(path: Path, nic: dict[str, Any]) -> Iterator[Finding]:
    network = nic.get("network", "user")
    if network == "bridge" and "bridge" not in nic:
        yield (*path, "bridge"), "missing", 'the name of a bridge: network = "bridge" needs it'
    if nic.get("path") == IoPath.VHOST and network != "bridge":
        yield (*path, "path"), f'path = "vhost" with network = "{network}"', 'vhost only beside network = "bridge"'
    if network == "user" and "bridge" in nic:
        yield (*path, "bridge"), 'bridge with network = "user"', 'bridge only beside network = "bridge"'
    if network == "bridge" and nic.get("forward_udp"):
        yield (*path, "forward_udp"), 'forward_udp with network = "bridge"', 'forward_udp only beside network = "user"'


def _function(path: Path, nic: dict[str, Any]) -> Iterator[Finding]:
    """A virtual function and its standby, and what is said of no other card."""
    network, is_function = nic.get("network", "user"), nic.get("path") == IoPath.SRIOV_VF
    if not is_function:
        if network == "none":
            yield (*path, "network"), 'network = "none"', 'a network, or path = "sriov_vf" beside it'
        for key in (*_FUNCTION_ONLY, "standby", "may_detach"):
            if key in nic:
                yield (*path, key), f'{key} without path = "sriov_vf"', f'{key} only beside path = "sriov_vf"'
        return
    if network not in {"bridge", "none"}:
        yield (*path, "network"), f"{network!r} beside path = 'sriov_vf'", '"bridge" (a standby on it) or "none"'
    if "physical_network" not in nic:
        yield (*path, "physical_network"), "missing", 'the name of a physical network: path = "sriov_vf" needs it'
    if network == "none" and "bridge" in nic:
        yield (*path, "bridge"), 'bridge with network = "none"', 'bridge only beside network = "bridge"'
    if network == "none" and "standby" in nic:
        yield (*path, "standby"), 'standby with network = "none"', 'standby only beside network = "bridge"'
    if network == "bridge" and "may_detach" in nic:
        seen = "may_detach beside a standby"
        yield (*path, "may_detach"), seen, 'may_detach only beside network = "none": with a standby it may, always'


def _too_many_devices(document: dict[str, Any]) -> Iterator[Finding]:
    functions: list[Path] = [
        ("nic", index, "path") for index, nic in _tables(document, "nic") if nic.get("path") == IoPath.SRIOV_VF
    ]
    devices: list[Path] = [("host_device", index) for index, _ in _tables(document, "host_device")]
    for path in [*functions, *devices][len(PORTS) :]:
        seen = f"{len(functions)} virtual functions and {len(devices)} devices of the host"
        yield path, seen, f"at most {len(PORTS)} together"


def _repeated_files(document: dict[str, Any]) -> Iterator[Finding]:
    """Two devices never write to one file, and nothing is written that another image stands on."""
    seen: dict[str, str] = {}
    boot = document.get("boot")
    for key in ("kernel", "initrd", "code", "nvram"):
        if isinstance(boot, dict) and isinstance(boot.get(key), str):
            seen.setdefault(boot[key], f"boot.{key}")
    for index, disk in _tables(document, "disk"):
        image = disk.get("image")
        if not isinstance(image, str):
            continue
        if image in seen:
            yield ("disk", index, "image"), f"{image!r}, which is also {seen[image]}", "a file of its own for each disk"
        seen.setdefault(image, f"disk[{index}].image")
    for index, disk in _tables(document, "disk"):
        for number, below in _tables(disk, "backing"):
            image = below.get("image")
            if isinstance(image, str) and image in seen:
                where = ("disk", index, "backing", number, "image")
                yield where, f"{image!r}, which is also {seen[image]}", "an image that no device of the guest has"


def _repeated_macs(document: dict[str, Any]) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for index, nic in _tables(document, "nic"):
        mac = nic.get("mac")
        if not isinstance(mac, str):
            continue
        first = seen.setdefault(mac.lower(), index)
        if first != index:
            yield (
                ("nic", index, "mac"),
                f"{mac!r}, which is also nic[{first}].mac",
                "an address of its own for each nic",
            )


def _repeated_ports(document: dict[str, Any]) -> Iterator[Finding]:
    seen: set[int] = set()
    for index, nic in _tables(document, "nic"):
        pairs = nic.get("forward_udp")
        for number, pair in enumerate(pairs if isinstance(pairs, list) else []):
            port = pair[0] if isinstance(pair, list) and pair else None
            if not isinstance(port, int):
                continue
            if port in seen:
                yield ("nic", index, "forward_udp", number), f"host port {port} again", "each host port once"
            seen.add(port)


def _tables(document: dict[str, Any], key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = document.get(key)
    for index, row in enumerate(rows if isinstance(rows, list) else []):
        if isinstance(row, dict):
            yield index, row

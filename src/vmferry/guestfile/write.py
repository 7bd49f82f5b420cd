"""`GuestSpec` -> guest file: what a person would have written, without the keys whose default it is."""

from __future__ import annotations

from typing import Any

import tomli_w

from vmferry.core.guest import Boot, Disk, GuestSpec, HostDevice, KernelBoot, Nic, UefiBoot
from vmferry.core.units import GIB, MIB
from vmferry.guestfile.model import DiskTable, GuestTable, NicTable


def dump_guest_file(spec: GuestSpec) -> str:
    """Return the guest file that gives this guest: `parse_guest_file` of it is the same `GuestSpec`.

    Nothing is checked: a guest that no guest file may have gives a text that `parse_guest_file` refuses.
    """
    top = {
        "name": spec.name,
        "uuid": spec.uuid,
        "memory": _size(spec.memory_bytes),
        "vcpus": spec.vcpus,
        "cpu": spec.cpu,
        "machine": spec.machine,
        "acceleration": spec.acceleration.value,
        "beat": spec.beat,
        "control": spec.control,
        "echo": spec.echo,
        "throttle": spec.throttle,
        "tpm": spec.tpm,
    }
    parts = [tomli_w.dumps(_said(top, GuestTable, always={"machine"})), _table("[boot]", _boot(spec.boot))]
    for disk in spec.disks:
        parts.append(_table("[[disk]]", _disk(disk)))
        parts += [_table("[[disk.backing]]", {"image": b.path, "format": b.format.value}) for b in disk.backing]
    parts += [_table("[[nic]]", _nic(nic)) + _forwards(nic) for nic in spec.nics]
    parts += [_table("[[host_device]]", _host_device(one)) for one in spec.host_devices]
    return "\n".join(parts)


def _table(heading: str, body: dict[str, Any]) -> str:
    """Return one table as people write it; tomli_w alone makes short ones inline."""
    return f"{heading}\n{tomli_w.dumps(body)}"


def _said(values: dict[str, Any], table: type[GuestTable | DiskTable | NicTable], always: set[str]) -> dict[str, Any]:
    """Return the keys whose value is not the default; a default may change, so some are always said."""
    defaults = {key: field.default for key, field in table.model_fields.items()}
    return {k: v for k, v in values.items() if v is not None and (k in always or v != defaults[k])}


def _size(size_bytes: int) -> str | int:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit} {name}"
    return size_bytes


def _boot(boot: Boot) -> dict[str, str]:
    if isinstance(boot, KernelBoot):
        said = {"kernel": boot.kernel, "initrd": boot.initrd, "cmdline": boot.cmdline or None}
        return {key: value for key, value in said.items() if value is not None}
    if isinstance(boot, UefiBoot):
        return {"firmware": "uefi", "code": boot.code, "nvram": boot.nvram}
    return {"firmware": "bios"}


def _disk(disk: Disk) -> dict[str, Any]:
    values = {
        "image": disk.path,
        "format": disk.format.value,
        "io_path": disk.io_path.value,
        "read_only": disk.read_only,
        "cache": disk.cache,
    }
    return _said(values, DiskTable, always={"format"})


def _nic(nic: Nic) -> dict[str, Any]:
    values = {
        "path": nic.io_path.value,
        "network": nic.network.value,
        "bridge": nic.bridge,
        "mac": nic.mac,
        "physical_network": nic.physical_network,
        "standby": nic.standby.value,
        "vlan": nic.vlan,
        "may_detach": nic.may_detach,
    }
    return _said(values, NicTable, always={"network"})


def _host_device(device: HostDevice) -> dict[str, Any]:
    return {"device": device.device, **({"may_detach": True} if device.may_detach else {})}


def _forwards(nic: Nic) -> str:
    """Return the pairs on one line; tomli_w gives each number a line of its own."""
    pairs = ", ".join(f"[{host}, {guest}]" for host, guest in nic.forward_udp)
    return f"forward_udp = [{pairs}]\n" if pairs else ""

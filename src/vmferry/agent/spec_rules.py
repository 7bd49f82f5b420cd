"""The guest file's rules for a guest that comes through the API: JSON written by hand gets the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vmferry.core.disks import wrong_chains
from vmferry.core.guest import GuestSpec, IoPath, KernelBoot, NetworkKind, Nic, UefiBoot
from vmferry.core.wanted_devices import PORTS
from vmferry.guestfile import words

_MOST_VCPUS = 255
_LAST_PORT = 65535

_Row = tuple[str, Callable[[Any], object], object]


def spec_complaints(spec: GuestSpec) -> list[str]:
    """Return what is wrong with the words of a guest, all at once. Never raises; touches nothing."""
    found = []
    for key, rule, value in _rows(spec):
        try:
            rule(value)
        except ValueError as error:
            found.append(f"{key} = {repr(value)[:80]}: expected {error}")
    return found + wrong_chains(spec)


def _rows(spec: GuestSpec) -> Iterator[_Row]:
    yield "name", words.guest_name, spec.name
    yield from _given("uuid", words.guest_uuid, spec.uuid)
    yield "memory_bytes", words.memory, spec.memory_bytes
    yield "vcpus", _from_1_to(_MOST_VCPUS), spec.vcpus
    yield "cpu", words.cpu, spec.cpu
    yield "machine", words.machine, spec.machine
    yield from _boot(spec)
    for index, disk in enumerate(spec.disks):
        yield f"disks[{index}].path", words.absolute_path, disk.path
        yield f"disks[{index}].io_path", words.disk_path, disk.io_path
        yield f"disks[{index}].cache", words.cache, disk.cache
        for number, below in enumerate(disk.backing):
            yield f"disks[{index}].backing[{number}].path", words.absolute_path, below.path
    for index, nic in enumerate(spec.nics):
        yield f"nics[{index}].io_path", _served_on_a_bridge, nic
        yield f"nics[{index}].io_path", _whole_function, nic
        yield from _given(f"nics[{index}].physical_network", words.physical_network, nic.physical_network)
        yield f"nics[{index}].vlan", words.vlan, nic.vlan
        yield from _given(f"nics[{index}].bridge", words.bridge, nic.bridge)
        yield from _given(f"nics[{index}].mac", words.mac, nic.mac)
        ports = [port for pair in nic.forward_udp for port in pair]
        yield from ((f"nics[{index}].forward_udp", _from_1_to(_LAST_PORT), port) for port in ports)
    for index, device in enumerate(spec.host_devices):
        yield f"host_devices[{index}].device", words.host_device, device.device
    yield "nics, host_devices", _few_devices, spec
    yield from _given("tpm", words.tpm_version, spec.tpm)
    yield from _given("echo", words.echo, spec.echo)


def _boot(spec: GuestSpec) -> Iterator[_Row]:
    boot = spec.boot
    if isinstance(boot, KernelBoot):
        yield "boot.kernel", words.absolute_path, boot.kernel
        yield from _given("boot.initrd", words.absolute_path, boot.initrd)
        yield "boot.cmdline", _without_nul, boot.cmdline
    elif isinstance(boot, UefiBoot):
        yield "boot.code", words.absolute_path, boot.code
        yield "boot.nvram", words.absolute_path, boot.nvram


def _given(key: str, rule: Callable[[Any], object], value: object) -> Iterator[_Row]:
    if value is not None:
        yield key, rule, value


def _from_1_to(last: int) -> Callable[[int], None]:
    def rule(value: int) -> None:
        if not 1 <= value <= last:
            raise ValueError(f"1 to {last}")

    return rule


def _served_on_a_bridge(nic: Nic) -> None:
    if nic.io_path is IoPath.VHOST and nic.network is not NetworkKind.BRIDGE:
        raise ValueError('vhost only beside network = "bridge"')


def _whole_function(nic: Nic) -> None:
    if not nic.is_function:
        if nic.network is NetworkKind.NONE or nic.physical_network is not None or nic.vlan or nic.may_detach:
            raise ValueError('network = "none", physical_network, vlan and may_detach only beside "sriov_vf"')
        return
    if nic.network is NetworkKind.USER or nic.physical_network is None or nic.standby not in words.STANDBY_PATHS:
        raise ValueError('sriov_vf with a physical_network, network = "bridge" or "none", standby "virtio" or "vhost"')
    if (nic.network is NetworkKind.BRIDGE) != (nic.bridge is not None):
        raise ValueError('a bridge beside network = "bridge", and only there')


def _few_devices(spec: GuestSpec) -> None:
    if sum(nic.is_function for nic in spec.nics) + len(spec.host_devices) > len(PORTS):
        raise ValueError(f"at most {len(PORTS)} virtual functions and devices of the host together")


def _without_nul(value: str) -> None:
    if "\0" in value:
        raise ValueError("a text without NUL")

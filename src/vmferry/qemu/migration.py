"""How a migration is set up and read: QAPI's names and units on one side, ours on the other. Pure.

Source: qapi/migration.json of QEMU 7.2 and 10.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmferry.core.capabilities import Transport
from vmferry.core.capabilities.conflict import find_conflict
from vmferry.core.errors import BadInput
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import MigrationSample, MigrationSetup
from vmferry.qemu.credentials import names
from vmferry.qemu.events import migration_status

#: Without a limit of its own QEMU takes 128 MiB/s; this is more than any link has.
NO_BANDWIDTH_LIMIT = 1 << 40

Version = tuple[int, int, int]

#: What a policy may set. A peer's setup comes over the network: nothing that says who may read or send the stream.
TUNABLE = frozenset(
    {
        "multifd-channels",
        "multifd-compression",
        "multifd-zlib-level",
        "multifd-zstd-level",
        "multifd-qatzip-level",
        "xbzrle-cache-size",
        "zero-page-detection",
        "direct-io",
        "cpu-throttle-initial",
        "cpu-throttle-increment",
        "cpu-throttle-tailslow",
        "max-cpu-throttle",
        "throttle-trigger-threshold",
        "vcpu-dirty-limit",
        "max-postcopy-bandwidth",
        "avail-switchover-bandwidth",
        "announce-initial",
        "announce-max",
        "announce-rounds",
        "announce-step",
    }
)
_FIXED = ("multifd-", "direct-io")


def check_setup(setup: MigrationSetup, known: frozenset[str], version: Version) -> None:
    """Check that a set of capabilities works on this version.

    Args:
        setup: the capabilities, and whether the stream is encrypted.
        known: capabilities of this QEMU.
        version: of this QEMU: it only selects rows of our own table (core/capabilities).

    Raises:
        BadInput: one is unknown here, lacks another, or excludes another; says why.
    """
    on = {name for name, is_on in setup.capabilities.items() if is_on}
    where = f"QEMU {'.'.join(map(str, version))}"
    if unknown := sorted(on - known):
        raise BadInput(f"{where} has no migration capability {', '.join(unknown)}", fix="leave it out")
    if setup.psk_key is not None and setup.certificates is not None:
        raise BadInput("A stream cannot be encrypted by a key and by certificates", fix="choose one of them")
    given = frozenset(on | {"tls"} if setup.encrypted else on)
    if (conflict := find_conflict(given, version)) is not None:
        raise BadInput(conflict.what, fix=conflict.fix)


def changed_capabilities(wanted: Mapping[str, bool], current: Mapping[str, bool]) -> list[dict[str, object]]:
    """Return what to set: the wanted ones, and off what an earlier migration left on."""
    goal = {name: wanted.get(name, False) for name in current}
    return [{"capability": name, "state": on} for name, on in sorted(goal.items()) if current[name] != on]


def parameters(setup: MigrationSetup, known: frozenset[str], *, incoming: bool = False) -> dict[str, bool | int | str]:
    """Return the parameters in QEMU's units (bytes/s, ms); TLS is off unless there is a key, or certificates.

    Raises:
        BadInput: a parameter that was asked for is unknown here, or not free to choose.
    """
    chosen: dict[str, bool | int | str] = {
        "max-bandwidth": setup.max_bandwidth or NO_BANDWIDTH_LIMIT,
        "downtime-limit": round(setup.downtime_limit_ms),
        "tls-creds": "",
        **names(setup, incoming=incoming),
    }
    return {**check_parameters(setup.parameters, known), **_known(chosen, known)}


def check_parameters(
    wanted: Mapping[str, bool | int | str], known: frozenset[str], *, live: bool = False
) -> dict[str, bool | int | str]:
    """Return parameters as QEMU takes them; QEMU itself checks their values.

    Args:
        wanted: QAPI names and units.
        known: parameters of this QEMU.
        live: whether the migration runs already.

    Raises:
        BadInput: one is unknown here, fixed when a migration starts, or set otherwise (limits, encryption).
    """
    if wrong := sorted(set(wanted) - TUNABLE):
        raise BadInput(
            f"migration parameter {', '.join(wrong)} cannot be chosen freely",
            fix=f"take one of {', '.join(sorted(TUNABLE))}",
        )
    if live and (fixed := sorted(name for name in wanted if name.startswith(_FIXED))):
        raise BadInput(
            f"migration parameter {', '.join(fixed)} is fixed when a migration starts", fix="cancel it and start again"
        )
    return _known(wanted, known)


def _known(chosen: Mapping[str, bool | int | str], known: frozenset[str]) -> dict[str, bool | int | str]:
    if unknown := sorted(set(chosen) - known):
        raise BadInput(f"this host's QEMU has no migration parameter {', '.join(unknown)}", fix="leave it out")
    return dict(chosen)


def uri(address: str, port: int, by: Transport = Transport.TCP) -> str:
    """Return an address of TCP or RDMA as QEMU takes it; an IPv6 one in brackets."""
    host = f"[{address}]" if ":" in address else address
    return f"{by}:{host}:{port}"


def sample(info: Mapping[str, Any]) -> MigrationSample:
    """Return one reading of query-migrate in our units; what QEMU did not say stays None or 0."""
    ram: Mapping[str, Any] = info.get("ram") or {}
    page = int(ram.get("page-size", 4096))
    return MigrationSample(
        status=migration_status(info.get("status")),
        error=_error(info),
        rounds=int(ram.get("dirty-sync-count", 0)),
        transferred_bytes=Bytes(ram.get("transferred", 0)),
        remaining_bytes=Bytes(ram.get("remaining", 0)),
        total_bytes=Bytes(ram.get("total", 0)),
        page_bytes=Bytes(page),
        duplicate_pages=int(ram.get("duplicate", 0)),
        normal_pages=int(ram.get("normal", 0)),
        dirty_bytes_per_second=BytesPerSecond(int(ram.get("dirty-pages-rate", 0)) * page),
        # `mbps` is megabits of 10**6 per second.
        bandwidth=BytesPerSecond(round(float(ram.get("mbps", 0.0)) * 1_000_000 / 8)),
        total_ms=_ms(info, "total-time"),
        setup_ms=_ms(info, "setup-time"),
        downtime_ms=_ms(info, "downtime"),
        expected_downtime_ms=_ms(info, "expected-downtime"),
        throttle_percent=info.get("cpu-throttle-percentage"),
        postcopy_bytes=Bytes(ram.get("postcopy-bytes", 0)),
        postcopy_requests=int(ram.get("postcopy-requests", 0)),
        blocked_reasons=tuple(info.get("blocked-reasons") or ()),
    )


def _error(info: Mapping[str, Any]) -> str | None:
    # 7.2 fails without a word when the stream breaks in the last phase.
    reason = "QEMU gave no reason" if info.get("status") == "failed" else None
    return info.get("error-desc") or reason


def _ms(info: Mapping[str, Any], key: str) -> Milliseconds | None:
    return Milliseconds(float(info[key])) if key in info else None

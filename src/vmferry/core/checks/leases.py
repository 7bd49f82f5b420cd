"""Leases of images (sanlock): both hosts take them, from one lockspace, and the guest has its own now."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case, name_list
from vmferry.core.disk_leases import DiskLeaseFacts, leased_images
from vmferry.core.errors import Blocker
from vmferry.core.host import HostFacts

_AT_BOTH = (
    "write the same lockspace and image_dirs under [sanlock] into the agent.toml of both hosts, or leave both out"
)


def images_with_leases(case: Case) -> tuple[str, ...]:
    """Return the images of a guest that have a lease at either host."""
    dirs = [each for host in _hosts(case) if host.disk_leases is not None for each in host.disk_leases.image_dirs]
    return leased_images(case.guest.spec, dirs)


def have_watchdogs(case: Case) -> bool:
    """Tell whether both hosts are reset when a guest there cannot be ended before its leases are."""
    return all(host.disk_leases is not None and host.disk_leases.watchdog for host in _hosts(case))


def check_leases(case: Case) -> Iterator[Blocker]:
    """A guest whose images have leases has them now, and will find the same ones at the destination."""
    images = images_with_leases(case)
    if not images:
        return
    source, destination = case.source, case.destination
    here, there = source.disk_leases, destination.disk_leases
    if here is None or there is None:
        without = destination if there is None else source
        other = source if there is None else destination
        yield Blocker(
            "disk.lease-one-host",
            f"images of guest {case.guest.spec.name} have leases (sanlock) on {other.name} and not on {without.name}:"
            f" {name_list(images)}",
            _AT_BOTH,
        )
        return
    yield from _check_ready(source, here)
    yield from _check_ready(destination, there)
    yield from _check_one_lockspace(case, here, there)
    if case.runtime.unleased and here.problem is None:
        yield Blocker(
            "disk.lease-not-held",
            f"guest {case.guest.spec.name} does not have the lease (sanlock) of {name_list(case.runtime.unleased)}: it"
            f" was started before {source.name} took leases, or sanlock's daemon was restarted since",
            f"start it anew: `vmferry guest stop {case.guest.spec.name}`, `vmferry guest start {case.guest.spec.name}`",
        )


def _check_ready(host: HostFacts, facts: DiskLeaseFacts) -> Iterator[Blocker]:
    if facts.problem is not None:
        yield Blocker(
            "disk.lease-unready",
            f"{host.name} can take no leases of images: {facts.problem.what}",
            f"on {host.name}: {facts.problem.fix}",
        )


def _check_one_lockspace(case: Case, here: DiskLeaseFacts, there: DiskLeaseFacts) -> Iterator[Blocker]:
    source, destination = case.source.name, case.destination.name
    mine, theirs = (leased_images(case.guest.spec, facts.image_dirs) for facts in (here, there))
    if here.lockspace != there.lockspace or mine != theirs:
        yield Blocker(
            "disk.lease-other-lockspace",
            f"{source} leases {name_list(mine)} in lockspace {here.lockspace},"
            f" {destination} leases {name_list(theirs)} in lockspace {there.lockspace}",
            _AT_BOTH,
        )
    elif here.host_id == there.host_id:
        yield Blocker(
            "disk.lease-same-host-id",
            f"{source} and {destination} have the same host_id {here.host_id} in lockspace {here.lockspace}",
            "give each host a host_id of its own under [sanlock] in its agent.toml",
        )
    elif here.problem is None and there.problem is None and not _see_each_other(here, there):
        yield Blocker(
            "disk.lease-not-seen",
            f"{source} and {destination} do not see each other in lockspace {here.lockspace}: {source} is"
            f" {_text(here.itself)} and sees {_seen(here)}, {destination} is {_text(there.itself)} and sees"
            f" {_seen(there)}",
            "wait half a minute if one of them has joined just now; else its directory of leases is not on the same"
            " storage",
        )


def _see_each_other(here: DiskLeaseFacts, there: DiskLeaseFacts) -> bool:
    """Tell whether each sees the other's present life in the lockspace, which is proof that it is one."""
    return here.itself in there.alive and there.itself in here.alive


def _seen(facts: DiskLeaseFacts) -> str:
    return name_list([_text(each) for each in facts.alive])


def _text(seen: tuple[int, int] | None) -> str:
    return "not there" if seen is None else f"{seen[0]} (generation {seen[1]})"


def _hosts(case: Case) -> tuple[HostFacts, HostFacts]:
    return case.source, case.destination

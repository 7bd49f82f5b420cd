"""Asks a destination's daemon everything that the checks of a domain want to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.errors import BadInput, Broken, Refused, Unreachable
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.checks.case import Case, first
from vmferry.libvirt.checks.offer import Said, host_cpu, read_offer
from vmferry.libvirt.making import copy_of
from vmferry.libvirt.moves.samples import job_text
from vmferry.libvirt.tree import parse

T = TypeVar("T")


async def ask_case(
    domain: str,
    source: LibvirtConnection,
    destination: LibvirtConnection,
    destination_name: str,
    rewrite: Callable[[str], str] = str,
) -> Case:
    """Return what the checks want to know of a domain at the source; changes nothing at either host.

    Args:
        domain: its name.
        source: its host's daemon.
        destination: the other daemon; not read-only, or it denies what its emulator can.
        destination_name: what the destination is called in blockers.
        rewrite: makes the domain what it shall be at the destination; as it is unless one is given.

    Raises:
        NotFound: the source has no such domain.
        Denied: the destination's connection is read-only.
        Unreachable, TimedOut, Broken: a daemon does not answer (any more).
        XmlRefused: a daemon said what is no XML.
    """
    root = parse(rewrite(await source.domain_xml(domain)))
    os_type, program, cpu = (first(root, path) for path in ("os/type", "devices/emulator", "cpu"))
    machine = "" if os_type is None else os_type.attributes.get("machine", "")
    emulator, kind = None if program is None else program.text, root.attributes.get("type", "")
    offered, emulator_error = await _or_why(destination.domain_capabilities(machine, kind, emulator))
    cpu_error: str | None = None
    if cpu is not None and cpu.attributes.get("mode", "custom") == "custom" and offered is not None:
        text = ET.tostring(copy_of(cpu), encoding="unicode")
        cpu_error = await _or_none(destination.compare_cpu(text, machine, kind, emulator))
    said = Said(
        host=destination_name,
        capabilities=await destination.capabilities(),
        domain_capabilities=offered,
        emulator_error=emulator_error,
        cpu_error=cpu_error,
        networks=await _or_none(destination.networks()),
        pools=await _or_none(destination.pools()),
        interfaces=await _or_none(destination.interfaces()),
        node_devices=await _or_none(destination.node_devices()),
        domains=await destination.domains(),
    )
    job = await _or_none(source.job_words(domain))
    return Case(
        root,
        host_cpu(parse(await source.capabilities())),
        read_offer(said),
        state=(await source.domain(domain)).state,
        job=None if job is None else job_text(job[0]),
    )


async def _or_none(answer: Awaitable[T]) -> T | None:
    """Return an answer; None from a daemon that does not have that part."""
    try:
        return await answer
    except Refused:
        return None


async def _or_why(answer: Awaitable[str]) -> tuple[str | None, str | None]:
    """Return an answer, or why libvirt cannot give it; neither from a daemon that does not have that part."""
    try:
        return await answer, None
    except Refused:
        return None, None
    except Unreachable:
        raise
    except (BadInput, Broken) as error:
        return None, error.what

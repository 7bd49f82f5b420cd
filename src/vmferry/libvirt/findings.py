"""What a guest file cannot say of a domain: each place in the XML, what is lost there, and what to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import ClassVar, Final

from vmferry.core.errors import BadInput
from vmferry.libvirt.tree import Element

#: What the guest would see otherwise and its owner may accept: the name, and what is lost.
ACCEPTABLE = {
    "address": "its place on the PCI bus: the hardware is laid out anew at the first start, with virtio devices on the"
    " root bus (transitional ones), so a network card may get another name in the guest (enp1s0)",
    "boot": "the guest boots from its first disk, and never from the network",
    "cdrom": "an empty CD-ROM drive",
    "channel": "a channel to a program in the guest, e.g. its agent",
    "clock": "the guest reads UTC from its clock, whatever it read before",
    "console": "a virtio console",
    "controller": "a controller and what may be plugged into it",
    "cpu": "a detail of its CPU: vendor, caches, width of addresses",
    "crypto": "a virtio crypto device",
    "disk": "a detail of a disk that the guest sees: serial number, names, queues",
    "features": "a feature of the machine that the guest sees",
    "genid": "the number by which the guest notices that it is a copy or was taken back in time",
    "graphics": "its screen: the serial console remains",
    "input": "a tablet, mouse or keyboard",
    "interface": "a detail of a network card that the guest sees: queues, offloads, MTU, link state, addresses",
    "iommu": "an IOMMU of its own",
    "maxMemory": "room for memory that is plugged in later",
    "memballoon": "the balloon, by which the host takes memory back and reads how much is used",
    "numa": "its NUMA nodes: it sees one",
    "parallel": "a parallel port",
    "pm": "whether it is told that it cannot sleep: it is not told",
    "rng": "the host's random numbers: without them and without RDRAND the start may take longer",
    "serial": "its serial ports: it has exactly one, COM1",
    "sound": "its sound card",
    "sysinfo": "what its firmware says of the maker, serial numbers and tags (SMBIOS)",
    "timer": "how its timers behave: HPET is there, lost ticks are QEMU's default",
    "topology": "sockets, cores and threads: it sees one socket with all vCPUs as cores",
    "tpm": "what is in its TPM: the state stays with libvirt, the guest starts with an empty one, and what it sealed"
    " there (disk keys) cannot be opened",
    "usb": "USB: controllers, hubs and what is redirected",
    "video": "its graphics card: the serial console remains",
    "vsock": "its socket to the host",
    "watchdog": "a watchdog card",
}


#: What to do where nothing can be changed without another guest.
STAY: Final = "leave the guest with libvirt"


class Effect(enum.StrEnum):
    """What becomes of something that a guest file cannot say."""

    SILENT = "silent"  #: libvirt's own book-keeping, or what every guest of ours has: nothing is lost
    LEFT_OUT = "left out"  #: the guest cannot tell the difference; it is told
    ASKED = "asked"  #: the guest would see other hardware: refused unless it is accepted by its name
    REFUSED = "refused"  #: its data or its isolation would suffer, or nothing here does the same


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a guest file cannot say."""

    effect: Effect
    line: int  #: from 1
    where: str  #: XPath
    seen: str  #: what stands there
    what: str  #: what is lost, or why it is refused
    fix: str  #: what to do; empty where nothing has to be done
    accept: str = ""  #: by what name it is accepted

    def text(self, file: str) -> str:
        """Return one line as compilers print them."""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{file}:{self.line}: {self.where}: {self.seen}: {self.what}{fix}"

    def row(self) -> dict[str, object]:
        """Return it for a program that asked for JSON."""
        return {
            "effect": self.effect.value,
            "line": self.line,
            "where": self.where,
            "seen": self.seen,
            "what": self.what,
            "fix": self.fix,
            "accept": self.accept or None,
        }


@dataclass
class DomainRefused(BadInput):
    """The domain cannot become a guest file as it is; nothing was written. Carries every reason."""

    file: str = ""
    findings: tuple[Finding, ...] = field(default=())

    code: ClassVar[str] = "libvirt-domain"

    def __str__(self) -> str:
        """Return every reason on a line of its own, and what to do on the last."""
        return f"{self.what}\n  {self.fix}"

    def problem(self) -> dict[str, object]:
        """Return the problem body with the list of reasons."""
        return {**BadInput.problem(self), "file": self.file, "problems": [finding.row() for finding in self.findings]}


class Findings:
    """Collects what a guest file cannot say.

    Args:
        accepted: names of what its owner accepts.
    """

    def __init__(self, accepted: frozenset[str] = frozenset()) -> None:
        self._accepted = accepted
        self._found: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Add one; what is accepted by its name is from then on only told."""
        if finding.effect is Effect.ASKED and finding.accept in self._accepted:
            finding = Finding(Effect.LEFT_OUT, finding.line, finding.where, finding.seen, finding.what, "")
        self._found.append(finding)

    def tell(self, element: Element, seen: str, what: str) -> None:
        """Add something that is lost without harm."""
        self.add(Finding(Effect.LEFT_OUT, element.line, element.where, seen, what, ""))

    def ask(self, element: Element, seen: str, accept: str) -> None:
        """Add something that the guest would see, which its owner may accept by a name of `ACCEPTABLE`."""
        what, fix = ACCEPTABLE[accept], f"--accept {accept}"
        self.add(Finding(Effect.ASKED, element.line, element.where, seen, what, fix, accept))

    def refuse(self, element: Element, seen: str, what: str, fix: str) -> None:
        """Add something that cannot be taken over."""
        self.add(Finding(Effect.REFUSED, element.line, element.where, seen, what, fix))

    @property
    def is_refused(self) -> bool:
        """Whether something cannot be taken over, whatever is accepted."""
        return any(finding.effect is Effect.REFUSED for finding in self._found)

    def ordered(self) -> tuple[Finding, ...]:
        """Return all of them in the order of their lines."""
        return tuple(sorted(self._found, key=lambda finding: finding.line))

    def check(self, file: str) -> None:
        """Refuse the domain, if anything of it is refused or has to be accepted first.

        Raises:
            DomainRefused: with everything that is in the way.
        """
        stops = tuple(f for f in self.ordered() if f.effect in {Effect.ASKED, Effect.REFUSED})
        if stops:
            raise DomainRefused(what=_summary(file, stops), fix=_fix(stops), file=file, findings=stops)


def short(value: str | None) -> str:
    """Return what stands somewhere, in quotes and not too long; "missing" for nothing."""
    if value is None:
        return "missing"
    return repr(value) if len(value) <= 60 else repr(value[:57]) + "..."


def _summary(file: str, stops: tuple[Finding, ...]) -> str:
    count = "1 thing" if len(stops) == 1 else f"{len(stops)} things"
    lines = "\n".join(f"  {finding.text(file)}" for finding in stops)
    return f"domain {file} has {count} that a guest file cannot say:\n{lines}"


def _fix(stops: tuple[Finding, ...]) -> str:
    names = ",".join(sorted({finding.accept for finding in stops if finding.effect is Effect.ASKED}))
    refused = any(finding.effect is Effect.REFUSED for finding in stops)
    ways = ["change in the XML what is refused"] * refused
    ways += [f"if the guest may lose {'the rest' if refused else 'all that'}: --accept {names}"] * bool(names)
    return "; ".join([*ways, "docs/libvirt.md says what becomes of every element"])

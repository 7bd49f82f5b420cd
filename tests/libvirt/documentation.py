"""Libvirt's own XML, out of Debian's source package of libvirt 9.0: its documentation's snippets, its tests' domains.

They are libvirt's (LGPL-2.1+), so none of them is in this repository: they are fetched when they are read.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from vmferry.lab.toolchain.apt import PrivateApt

#: whose libvirt the tables were made from
SUITE = "bookworm"
#: what a snippet leaves out of a domain
NAME = "<name>web-7</name>"
MEMORY = "<memory unit='MiB'>512</memory>"
OS = "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/k</kernel></os>"
_TAG = re.compile(
    r"<!--.*?-->|<(/?)([A-Za-z][\w:.-]*)((?:\s+[\w:.-]+\s*=\s*(?:'[^']*'|\"[^\"]*\"))*)\s*(/?)>", re.DOTALL
)
_DEVICES = frozenset(
    {
        *("disk", "filesystem", "controller", "lease", "hostdev", "redirdev", "smartcard", "interface", "input", "hub"),
        *("graphics", "video", "parallel", "serial", "console", "channel", "sound", "watchdog", "memballoon", "rng"),
        *("tpm", "nvram", "panic", "shmem", "memory", "iommu", "vsock"),
    }
)


class SourceApt(PrivateApt):
    """The same, for source packages."""

    def source(self, package: str) -> Path:
        """Fetch a source package and return its newest upstream archive."""
        self._apt("source", "--download-only", package, cwd=self.directory)
        return next(path for path in self.directory.glob("*.orig.tar.*") if path.suffix != ".asc")

    def _sources(self) -> str:
        return super()._sources().replace("deb ", "deb-src ")


def fetch(directory: Path) -> Path:
    """Return the directory of libvirt's source with its documentation and its domains for tests."""
    apt = SourceApt(directory, (SUITE,))
    apt.update()
    folders = ("qemuxml2argvdata", "qemuxml2xmloutdata", "domaincapsdata", "capabilityschemadata")
    wanted = ("*/docs/formatdomain.rst", *(f"*/tests/{folder}/*.xml" for folder in folders))
    command = ["tar", "-xf", str(apt.source("libvirt")), "--wildcards", *wanted]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=300)
    return next(directory.glob("libvirt-*/"))


def snippets(page: str) -> Iterator[tuple[int, str]]:
    """Yield the XML snippets of a page with their lines, each made a whole domain."""
    lines = page.splitlines()
    for number, line in enumerate(lines):
        if line.rstrip().endswith("::") and not line.startswith(".."):
            block = "\n".join(_indented(lines[number + 1 :], len(line) - len(line.lstrip())))
            if "<" in block:
                yield number + 1, _domain(_mended(block))


def as_ours(text: str) -> str:
    """Return a domain of libvirt's tests with the machine, architecture and bus that a guest file has."""
    text = re.sub(r"machine=(['\"])(pc[^'\"]*|q35)\1", "machine='pc-q35-7.2'", text)
    return text.replace("i686", "x86_64").replace("'ide'", "'sata'")


def _indented(lines: list[str], margin: int) -> Iterator[str]:
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= margin:
            return
        yield line


def _mended(block: str) -> str:
    """Return a snippet as XML: without dots and stray text, and with what it leaves open closed."""
    out, opened, at = [], list[str](), 0
    for tag in _TAG.finditer(block):
        out.append(re.sub(r"[<&]|\.\.\.", "", block[at : tag.start()]))
        at, (closing, name, _, empty) = tag.end(), tag.groups()
        if name is None or (closing and name not in opened):
            continue
        while closing and opened[-1] != name:
            out.append(f"</{opened.pop()}>")
        if closing:
            opened.pop()
        elif not empty:
            opened.append(name)
        out.append(tag[0])
    return "".join([*out, *(f"</{name}>" for name in reversed(opened))])


def _domain(xml: str) -> str:
    found = re.search(r"<domain\b[^>]*>(.*)</domain>", xml, re.DOTALL)
    inner = found[1] if found else xml
    first = re.match(r"\s*<(\w+)", inner)
    if first and first[1] in _DEVICES and "<devices>" not in inner:
        inner = f"<devices>{inner}</devices>"
    said = set(re.findall(r"<(name|memory|os)\b", inner))
    base = "".join(text for tag, text in (("name", NAME), ("memory", MEMORY), ("os", OS)) if tag not in said)
    return f"<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>{base}{inner}</domain>"

"""`--libvirt NAME=VALUE`: what only libvirt has a word for. A table of names and what each takes. Pure.

Names are libvirt's own where it has one, so that its documentation is of use.

Source: https://libvirt.org/html/libvirt-libvirt-domain.html#VIR_MIGRATE_PARAM_URI and what follows there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vmferry.core.errors import BadInput
from vmferry.libvirt.moves import terms
from vmferry.libvirt.moves.terms import Term

Value = int | str

DIRECT, PEERS = "direct", "p2p"
_YES, _NO = "yes", "no"
_ADDRESS = re.compile(r"[0-9A-Za-z.:_-]{1,255}")
#: Where QEMU's disks go: no other scheme, and nothing that a reader could take for an option.
_DISKS_URI = re.compile(r"(tcp://(\[[0-9a-fA-F:]+\]|[0-9A-Za-z._-]+)(:\d{1,5})?|unix:///[\w./-]+)")


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was asked for in libvirt's own words.

    Attributes:
        flow: `DIRECT` or `PEERS`; None: whichever works.
        define: whether the domain is defined at the destination; None: as it is at the source.
        undefine: whether it is undefined at the source; None: as above.
        paused: whether it is left standing still at the destination.
        unsafe: whether both hosts see the same files, by the word of whoever asks: libvirt does not know it.
        held: whether it is let run at the destination only when the source has no process of it any more; None: where
            nothing else keeps it from running on both hosts.
        parameters: each with its value in libvirt's unit.
    """

    flow: str | None = None
    define: bool | None = None
    undefine: bool | None = None
    paused: bool = False
    unsafe: bool = False
    held: bool | None = None
    parameters: Mapping[Term, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    takes: str  #: for people
    read: Callable[[str], Value | None]  #: None: it is none
    term: Term | None = None  #: None: no parameter of libvirt's


def _word(*words: str) -> _Row:
    return _Row(" or ".join(words), lambda text: text if text in words else None)


def _number(term: Term, least: int, most: int) -> _Row:
    def read(text: str) -> int | None:
        return int(text) if re.fullmatch(r"\d{1,18}", text) and least <= int(text) <= most else None

    return _Row(f"{least} to {most}", read, term)


def _text(term: Term, takes: str, pattern: re.Pattern[str]) -> _Row:
    return _Row(takes, lambda text: text if pattern.fullmatch(text) else None, term)


#: name -> what it takes
TABLE: Mapping[str, _Row] = {
    "flow": _word(PEERS, DIRECT),
    "define": _word(_YES, _NO),
    "undefine": _word(_YES, _NO),
    "paused": _word(_YES, _NO),
    "unsafe": _word(_YES, _NO),
    "held": _word(_YES, _NO),
    "listen_address": _text(terms.LISTEN_ADDRESS, "an address or a host's name", _ADDRESS),
    "disks_port": _number(terms.DISKS_PORT, 1, 65535),
    "disks_uri": _text(terms.DISKS_URI, "tcp://ADDRESS[:PORT] or unix:///PATH", _DISKS_URI),
    "tls.destination": _text(terms.TLS_DESTINATION, "the name in the destination's certificate", _ADDRESS),
    "bandwidth.postcopy": _number(terms.BANDWIDTH_POSTCOPY, 1, 1 << 30),
    "compression.xbzrle.cache": _number(terms.XBZRLE_CACHE, 4096, 1 << 40),
    "compression.zlib.level": _number(terms.ZLIB_LEVEL, 0, 9),
    "compression.zstd.level": _number(terms.ZSTD_LEVEL, 0, 20),
    "auto_converge.initial": _number(terms.CONVERGE_INITIAL, 1, 99),
    "auto_converge.increment": _number(terms.CONVERGE_INCREMENT, 1, 99),
}


def parse_tuning(given: Iterable[str]) -> Tuning:
    """Return what was asked for.

    Args:
        given: `NAME=VALUE` each.

    Raises:
        BadInput: a name is none of the table's or is there twice, or a value is none that it takes.
    """
    values: dict[str, Value] = {}
    for each in given:
        name, equals, text = each.partition("=")
        row = TABLE.get(name)
        if row is None or not equals:
            raise BadInput(f"--libvirt {each!r} is nothing that can be asked for", fix=f"NAME=VALUE: {_names()}")
        value = row.read(text)
        if value is None:
            raise BadInput(f"--libvirt {name}={text} is no value of it", fix=f"it takes {row.takes}")
        if name in values:
            raise BadInput(f"--libvirt {name} is there twice", fix="leave one of them out")
        values[name] = value
    parameters = {term: value for name, value in values.items() if (term := TABLE[name].term) is not None}
    flow = values.get("flow")
    return Tuning(
        None if flow is None else str(flow),
        _yes(values, "define"),
        _yes(values, "undefine"),
        _yes(values, "paused") or False,
        _yes(values, "unsafe") or False,
        _yes(values, "held"),
        parameters,
    )


def postcopy_limit(tuning: Tuning, limit: int | None) -> int | None:
    """Return the limit of post-copy's pages in MiB/s: what was asked for, else the stream's own; None: no limit."""
    asked = tuning.parameters.get(terms.BANDWIDTH_POSTCOPY)
    return limit if asked is None else int(asked)


def _yes(values: Mapping[str, Value], name: str) -> bool | None:
    return values[name] == _YES if name in values else None


def _names() -> str:
    return ", ".join(TABLE)

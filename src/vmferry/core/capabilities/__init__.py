"""What a migration is set to, chosen before it starts: our own table per QEMU version, a choice, and its price.

Source: migration/options.c, migration/migration.c and qapi/migration.json of QEMU 7.2, 9.1, 10.0 and 10.2; what an
older version accepts and fails at was tried (tests/capabilities).
"""

from __future__ import annotations

from vmferry.core.capabilities.choose import choose
from vmferry.core.capabilities.features import BY_NAME, FEATURES, Feature, Kind, Version
from vmferry.core.capabilities.price import Basis, Figure, FirstRound, RestartPrice, restart_price
from vmferry.core.capabilities.rules import (
    EXCLUSIONS,
    HOST_NEEDS,
    REQUIREMENTS,
    Exclusion,
    HostNeed,
    Requirement,
    Resource,
    Verdict,
)
from vmferry.core.capabilities.stream import (
    DEFAULT_CHANNELS,
    DEFAULT_STREAM,
    LINKS,
    MOST_CHANNELS,
    Compression,
    Encryption,
    StreamWish,
)
from vmferry.core.capabilities.wish import (
    HANDOVER,
    CapabilitySet,
    LeftOut,
    Level,
    Transport,
    Wanted,
    Wish,
)

__all__ = [
    "BY_NAME",
    "DEFAULT_CHANNELS",
    "DEFAULT_STREAM",
    "EXCLUSIONS",
    "FEATURES",
    "HANDOVER",
    "HOST_NEEDS",
    "LINKS",
    "MOST_CHANNELS",
    "REQUIREMENTS",
    "Basis",
    "CapabilitySet",
    "Compression",
    "Encryption",
    "Exclusion",
    "Feature",
    "Figure",
    "FirstRound",
    "HostNeed",
    "Kind",
    "LeftOut",
    "Level",
    "Requirement",
    "Resource",
    "RestartPrice",
    "StreamWish",
    "Transport",
    "Verdict",
    "Version",
    "Wanted",
    "Wish",
    "choose",
    "restart_price",
]

"""What is known of the links to other hosts, and from where: asked for, configured, the device's word, or measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from vmferry.agent.probing import Measured
from vmferry.api import models as m
from vmferry.conductor.link import LinkSpeed
from vmferry.core.bandwidth import Bandwidth, expect
from vmferry.core.ids import HostName
from vmferry.core.units import BytesPerSecond


@dataclass(frozen=True, slots=True)
class Links:
    """Tells what is known.

    Args:
        name: this host's.
        configured: `migration.max_bandwidth`; None: not said.
        speed: what the device towards a host gives; takes a few ms.
        measured: what the last probe to a host saw.
    """

    name: HostName
    configured: BytesPerSecond | None
    speed: Callable[[HostName], LinkSpeed]
    measured: Callable[[HostName], Measured | None]

    def limit(self, host: HostName) -> BytesPerSecond | None:
        """Return what a stream to a host may take; None: no limit is known."""
        return self.configured or self.speed(host).bytes_per_second

    def bandwidth(self, host: HostName) -> Bandwidth | None:
        """Return what was measured of the link to a host, not too long ago."""
        measured = self.measured(host)
        return measured.bandwidth if measured is not None and measured.counts else None

    def device(self, host: HostName) -> str | None:
        """Return by which device packets to a host leave."""
        return self.speed(host).device

    async def view(self, host: HostName, asked: BytesPerSecond | None = None) -> m.LinkView:
        """Return what is known of the link to a host, for a stream that may take what was asked for.

        Raises:
            NotFound: the host is not in the fleet (any more).
        """
        speed, measured = await asyncio.to_thread(self.speed, host), self.measured(host)
        limits = {"asked": asked, "configured": self.configured, "device": speed.bytes_per_second}
        limited_by, limit = next(((who, most) for who, most in limits.items() if most), (None, None))
        bandwidth = expect(limit, self.bandwidth(host))
        return m.LinkView(
            source=self.name,
            destination=host,
            bandwidth=bandwidth,
            told_by=limited_by if bandwidth == limit else "measured",
            limit=limit,
            limited_by=limited_by,
            device=speed.why,
            measured=None if measured is None else _measured_view(measured),
        )


def _measured_view(measured: Measured) -> m.MeasuredLink:
    return m.MeasuredLink(
        bytes_per_second=measured.bandwidth.bytes_per_second,
        is_least=measured.bandwidth.is_least,
        round_trip_ms=measured.round_trip_ms,
        age_s=round(measured.age_s, 3),
        counts=measured.counts,
    )

"""The time left as it is told: it never grows without a sentence that says why."""

from __future__ import annotations

from vmferry.core.units import BytesPerSecond, Milliseconds, format_rate

#: Growth within this much is noise of the measurement: the smaller figure stands.
_NOISE_FACTOR = 1.1
_NOISE_MS = 250.0
#: A bandwidth that fell by a tenth is a reason.
_FELL = 0.9


class TimeLeft:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._told: Milliseconds | None = None  #: the last figure
        self._unknown = True  #: whether "cannot be said" was told after it
        self._bandwidth = BytesPerSecond(0)  #: when the figure was made

    def tell(
        self, estimate: Milliseconds | None, bandwidth: BytesPerSecond, reason: str | None, otherwise: str
    ) -> tuple[Milliseconds | None, str | None]:
        """Return the time left, and why it is longer than what was told before (None: it is not longer).

        Args:
            estimate: what the measurements say now; None: it cannot be said.
            bandwidth: what the estimate was made with.
            reason: what happened since the last call that may make it longer, the end of a round for example.
            otherwise: the sentence for growth that neither this nor the bandwidth explains.
        """
        if estimate is None:
            known_before, self._unknown = self._told is not None and not self._unknown, True
            return None, self._why(bandwidth, reason or otherwise, known=reason is not None) if known_before else None
        if self._told is None or estimate <= self._told:
            return self._settle(estimate, bandwidth), None
        if estimate <= self._told * _NOISE_FACTOR + _NOISE_MS:
            self._unknown = False
            return self._told, None
        why = self._why(bandwidth, reason or otherwise, known=reason is not None)
        return self._settle(estimate, bandwidth), why

    def _settle(self, estimate: Milliseconds, bandwidth: BytesPerSecond) -> Milliseconds:
        self._told, self._unknown, self._bandwidth = estimate, False, bandwidth
        return estimate

    def _why(self, bandwidth: BytesPerSecond, reason: str, *, known: bool) -> str:
        if not known and bandwidth <= 0:
            return "nothing was sent in the last second"
        if not known and bandwidth < self._bandwidth * _FELL:
            return f"bandwidth fell from {format_rate(self._bandwidth)} to {format_rate(bandwidth)}"
        return reason

"""`xen-3.0`: the loop of Xen's `xc_linux_save.c`, with its adaptive rate and (`-default-build`) without."""

from __future__ import annotations

from typing import ClassVar

from vmferry.core.convergence.facts import Description, Facts, Wishes
from vmferry.core.convergence.observations import Round
from vmferry.core.convergence.orders import NEARLY_ZERO_MS, Orders, SetBandwidth, SetDowntimeLimit, SwitchNow
from vmferry.core.convergence.policy import Policy
from vmferry.core.units import BytesPerSecond

MOST_ROUNDS = 29
FEW_PAGES = 50
MOST_FACTOR = 3
START_MBIT, MOST_MBIT, STEP_MBIT = 100, 500, 50
_RULES = (
    f"{MOST_ROUNDS} rounds",
    f"a round that sent fewer than {FEW_PAGES} pages",
    f"more pages sent in total than {MOST_FACTOR} times the guest's",
)
_QEMU = "is kept from deciding (downtime limit 1 ms); SwitchNow raises the limit to 2000 s"


class Xen30(Policy):
    """Counts what rounds send, and follows the dirty rate with its own."""

    adaptive: ClassVar[bool] = True
    description = Description(
        name="xen-3.0",
        what="Xen's loop of 2005, its rate following what the guest dirties.",
        rules=("a round that sent more than the round before, with the rate at its maximum", *_RULES),
        qemu=_QEMU,
        source="Xen 3.0, tools/libxc/xc_linux_save.c built with ADAPTIVE_SAVE; Clark et al., NSDI 2005",
        parameters=(("rate", "starts at 100 Mbit/s, next = dirtied + 50, at most 500"), ("rounds", "29")),
        forces=True,
    )

    def wishes(self, facts: Facts) -> Wishes:  # noqa: ARG002 - the same for every guest
        """Return the first rate."""
        return Wishes(max_bandwidth=_rate(START_MBIT) if self.adaptive else None)

    def started(self) -> Orders:
        """Begin slowly, and keep QEMU from deciding."""
        self._mbit = START_MBIT
        self._total = 0
        self._sent: int | None = None
        limit = SetDowntimeLimit(NEARLY_ZERO_MS, "pages are counted, not time")
        return (SetBandwidth(_rate(START_MBIT), "Xen's first rate"), limit) if self.adaptive else (limit,)

    def on_round(self, ended: Round) -> Orders:
        """Apply the four rules, else set the next rate."""
        before, self._sent = self._sent, ended.sent_pages
        self._total += ended.sent_pages
        if self.adaptive and self._mbit >= MOST_MBIT and before is not None and ended.sent_pages > before:
            return (
                SwitchNow(f"round {ended.round} sent {ended.sent_pages} pages after {before}, at the highest rate"),
            )
        if ended.round >= MOST_ROUNDS:
            return (SwitchNow(f"{ended.round} rounds"),)
        if ended.sent_pages < FEW_PAGES:
            return (SwitchNow(f"round {ended.round} sent {ended.sent_pages} pages, fewer than {FEW_PAGES}"),)
        guest_pages = self.facts.ram_bytes // self.facts.page_bytes
        if self._total > MOST_FACTOR * guest_pages:
            return (SwitchNow(f"{self._total} pages sent, more than {MOST_FACTOR} x the guest's {guest_pages}"),)
        return self._next_rate(ended) if self.adaptive else ()

    def _next_rate(self, ended: Round) -> Orders:
        if ended.duration_ms <= 0:
            return ()
        dirtied = ended.dirtied_pages * self.facts.page_bytes * 8 / 1000 / ended.duration_ms
        mbit = int(min(max(dirtied + STEP_MBIT, START_MBIT), MOST_MBIT))
        if mbit == self._mbit:
            return ()
        self._mbit = mbit
        return (SetBandwidth(_rate(mbit), f"dirtied {dirtied:.0f} Mbit/s + {STEP_MBIT}"),)


class Xen30DefaultBuild(Xen30):
    """As it was built by default: no rate, and the rule that needs one never fires."""

    adaptive = False
    description = Description(
        name="xen-3.0-default-build",
        what="Xen's loop of 2005 as it was built by default: without a rate.",
        rules=_RULES,
        qemu=_QEMU,
        source="Xen 3.0, tools/libxc/xc_linux_save.c built without ADAPTIVE_SAVE",
        parameters=(("rounds", "29"),),
        forces=True,
    )


def _rate(mbit: int) -> BytesPerSecond:
    return BytesPerSecond(mbit * 125_000)

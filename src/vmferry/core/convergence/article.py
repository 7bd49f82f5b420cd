"""`article`: the three rules as the article of 2019 reads, and its "no noticeable gain"."""

from __future__ import annotations

from vmferry.core.convergence.facts import Description
from vmferry.core.convergence.observations import Round
from vmferry.core.convergence.orders import NEARLY_ZERO_MS, Orders, SetDowntimeLimit, SwitchNow
from vmferry.core.convergence.policy import Policy

MOST_PAGES = 50
MOST_ROUNDS = 30
#: The article gives no number for "noticeably": a round that leaves more than this share of what the one before left.
NO_GAIN = 0.95


class Article(Policy):
    """Counts pages and rounds; the last three rules force the switchover whatever the downtime."""

    description = Description(
        name="article",
        what="Switches over after a round that leaves few pages, or when going on seems to be of no use.",
        rules=(
            f"concentration: at most {MOST_PAGES} dirty pages are left after a round",
            "no diffusion: one round sends fewer pages than were newly dirtied",
            f"finite loop: {MOST_ROUNDS} rounds",
            f"no noticeable gain: a round leaves more than {NO_GAIN:.0%} of what the round before it left",
        ),
        qemu="is kept from deciding (downtime limit 1 ms); SwitchNow raises the limit to 2000 s",
        source='"KVM live migration" (2019), 2.2; "noticeably" has no number there, ours is 5 %',
        parameters=(("pages", str(MOST_PAGES)), ("rounds", str(MOST_ROUNDS)), ("least gain", f"{1 - NO_GAIN:.0%}")),
        forces=True,
    )

    def started(self) -> Orders:
        """Keep QEMU from deciding."""
        self._left: int | None = None
        return (SetDowntimeLimit(NEARLY_ZERO_MS, "pages are counted, not time"),)

    def on_round(self, ended: Round) -> Orders:
        """Apply the four rules in the article's order."""
        before, self._left = self._left, ended.remaining_pages
        if ended.remaining_pages <= MOST_PAGES:
            return (SwitchNow(f"concentration: {ended.remaining_pages} pages left, {MOST_PAGES} or fewer"),)
        if ended.sent_pages < ended.dirtied_pages:
            rule = f"round {ended.round} sent {ended.sent_pages} pages, {ended.dirtied_pages} were dirtied"
            return (SwitchNow(f"no diffusion: {rule}"),)
        if ended.round >= MOST_ROUNDS:
            return (SwitchNow(f"finite loop: {ended.round} rounds"),)
        if before is not None and ended.remaining_pages > NO_GAIN * before:
            return (
                SwitchNow(f"no noticeable gain: {ended.remaining_pages} pages left after {before} the round before"),
            )
        return ()

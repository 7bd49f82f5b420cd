"""Progress on a terminal: phases, steps, rounds and the time left, drawn anew from the scene each time."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.measures import has_measures, measures
from vmferry.cli.render.scene import PHASES, STEPS, Scene
from vmferry.cli.render.words import dirtied_text, disks_text, finished_text, order_text, policy_text, rest_text, title
from vmferry.core.progress import Outcome, Progress, RoundEnded, Step
from vmferry.core.units import format_bytes, format_ms, format_rate

#: Enough to see where it goes; the first ones and the last ones of a long migration.
MOST_ROUNDS = 12
MOST_ORDERS = 6


def draw(scene: Scene) -> RenderableType:
    """Return the whole view of a migration, live or finished."""
    parts: list[RenderableType] = [Text(title(scene), style="bold"), _phases(scene), _steps(scene)]
    if scene.rounds:
        parts.append(_rounds(scene.rounds))
    parts += _orders(scene)
    if scene.finished is None:
        parts += _now(scene)
    else:
        parts += _end(scene)
    return Group(*parts)


def _phases(scene: Scene) -> RenderableType:
    line = Text("phase ")
    for number, (name, _) in enumerate(PHASES, 1):
        line.append(f" {number} {name} ", style=_style(number, scene.phase or 0, over=_is_over(scene)))
    return line


def _steps(scene: Scene) -> RenderableType:
    current = int(scene.step) if scene.step is not None else 0
    lines = []
    for step in Step:
        done = int(step) < current or (int(step) == current and _is_over(scene))
        mark = "x" if done else ">" if int(step) == current else " "
        lines.append(Text(f" [{mark}] {int(step)} {STEPS[step]}", style=_style(int(step), current, over=done)))
    return Group(*lines)


def _style(number: int, current: int, *, over: bool) -> str:
    if number == current and not over:
        return "bold cyan"
    return "green" if number <= current else "dim"


def _is_over(scene: Scene) -> bool:
    return scene.finished is not None and scene.finished.outcome is Outcome.MOVED


def _rounds(rounds: tuple[RoundEnded, ...]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("round", justify="right", no_wrap=True)
    for heading in ("duration", "sent", "dirtied", "bandwidth", "rest / limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    half = MOST_ROUNDS // 2
    shown = rounds if len(rounds) <= MOST_ROUNDS else (*rounds[:half], None, *rounds[-half:])
    for ended in shown:
        if ended is None:
            table.add_row("...")
            continue
        table.add_row(
            str(ended.round),
            format_ms(ended.duration_ms),
            format_bytes(ended.sent_bytes),
            dirtied_text(ended),
            format_rate(ended.bandwidth),
            rest_text(ended.expected_downtime_ms, ended.downtime_limit_ms),
            ended.verdict,
        )
    return Padding(table, (1, 0, 0, 1))


def _orders(scene: Scene) -> list[RenderableType]:
    """Return the policy, and its newest orders."""
    lines: list[RenderableType] = []
    if scene.policy is not None:
        lines.append(Text(policy_text(scene.policy), style="dim"))
    if len(scene.orders) > MOST_ORDERS:
        lines.append(Text(f"  ... {len(scene.orders) - MOST_ORDERS} earlier orders", style="dim"))
    newest = scene.orders[-MOST_ORDERS:]
    return [*lines, *(Text(f"  {order_text(o)}", style="red" if o.refused else "yellow") for o in newest)]


def _now(scene: Scene) -> list[RenderableType]:
    """Return the lines about this moment."""
    if scene.progress is None and scene.disks is not None:
        copied, total = scene.disks.copied_bytes, max(1, scene.disks.total_bytes)
        bar = Padding(ProgressBar(total=total, completed=copied, width=60), (1, 0, 0, 1))
        return [bar, Text(disks_text(scene.disks)), Text(f"state {scene.state}", style="dim")]
    if scene.progress is None:
        return [Text(f"state {scene.state or 'opened'}", style="dim")]
    parts: list[RenderableType] = [_bar(scene.progress), _reading(scene.progress)]
    if scene.time_left_ms is not None and (scene.phase or 0) < len(PHASES):
        longer = f" (longer: {scene.why_longer})" if scene.why_longer else ""
        parts.append(Text(f"about {format_ms(scene.time_left_ms)} left until the switchover{longer}"))
    if scene.owner is not None:
        parts.append(Text(f"state {scene.state}; guest belongs to {scene.owner}", style="dim"))
    return parts


def _bar(reading: Progress) -> RenderableType:
    sent = max(0, reading.total_bytes - reading.remaining_bytes)
    return Padding(ProgressBar(total=max(1, reading.total_bytes), completed=sent, width=60), (1, 0, 0, 1))


def _reading(reading: Progress) -> RenderableType:
    return Text(
        f"round {reading.round}: {format_bytes(reading.remaining_bytes)} of {format_bytes(reading.total_bytes)} left,"
        f" {format_rate(reading.bandwidth)}, dirtying {format_rate(reading.dirty_bytes_per_second)}; rest / limit"
        f" {rest_text(reading.expected_downtime_ms, reading.downtime_limit_ms)}: {reading.verdict}"
    )


def _end(scene: Scene) -> list[RenderableType]:
    """Return how it ended, what blocks, and what was measured."""
    finished = scene.finished
    if finished is None:
        return []
    good = finished.outcome is Outcome.MOVED
    parts: list[RenderableType] = [Text(finished_text(scene, finished), style="bold green" if good else "bold red")]
    parts += [Text(f"  {blocker.code}: {blocker.what}; {blocker.fix}") for blocker in finished.blockers]
    if finished.report is not None and has_measures(finished.report):
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for name, value in measures(finished.report):
            table.add_row(name, value)
        parts.append(Padding(table, (0, 0, 0, 1)))
    return parts

"""What the commands print: tables, lines, progress with the time to go."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from autocompress.journal import Trial
from autocompress.pareto import Front, Member
from autocompress.structure import describe_sizes
from autocompress.units import clock

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str) -> None:
    """One line on standard error."""
    err.print(Text.assemble(("autocompress: ", "bold red"), message))


def front_table(front: Front) -> Table:
    """The front, fastest first, the baseline last."""
    split = "test" if front.verified else "validation, not verified"
    table = Table(
        title=f"{len(front.members)} models on {front.hardware['name']} ({front.metric} on {split})", title_justify="left"
    )
    for name in ("model", "ms", "speedup", front.metric, "drop, points", "MB"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    table.add_column("what it is")
    rows = [*front.members, *([front.baseline] if front.baseline.id not in {m.id for m in front.members} else [])]
    for member in rows:
        q = member.quality
        stderr = q.drop_validation_stderr if q.drop_test_stderr is None else q.drop_test_stderr
        table.add_row(
            member.id,
            f"{member.latency_ms.median:.2f}",
            f"{member.speedup:.2f}x",
            f"{q.reported:.4f}",
            f"{q.drop_reported:.2f} ± {stderr:.2f}",
            f"{member.weight_bytes / 1e6:.1f}",
            describe(member.candidate, member.sizes),
        )
    return table


def describe(candidate: dict[str, Any], sizes: dict[str, Any] | None) -> str:
    """A candidate in words."""
    scheme = candidate.get("quantization.scheme", "fp32")
    block = candidate.get("quantization.block_size")
    steps = candidate.get("recovery.steps", 0)
    return ", ".join(
        [
            describe_sizes(sizes),
            f"{scheme}/{block}" if block else str(scheme),
            *([f"{steps} steps"] if steps else []),
        ]
    )


def member_line(member: Member, metric: str) -> str:
    """A picked model in one line."""
    q, l = member.quality, member.latency_ms
    return (
        f"{member.id}: {l.median:.3g} ms (95 % {l.ci95[0]:.3g} to {l.ci95[1]:.3g}), {member.speedup:.2f}x, "
        f"{metric} {q.reported:.4f} (drop {q.drop_reported:.2f} points), {member.weight_bytes / 1e6:.1f} MB; "
        f"{describe(member.candidate, member.sizes)}"
    )


class _ToGo(ProgressColumn):
    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        return Text(f"{clock(end - time.monotonic())} to go" if end else "", style="cyan")


class Progressing:
    """A ``Listener`` that prints a line per trial, and on a terminal a bar with the time to go."""

    def __init__(self, time_limit_s: float | None) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _ToGo(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        end = time.monotonic() + time_limit_s if time_limit_s else None
        self.task = self.progress.add_task("starting", total=None, end=end)
        self.last_stage = ""

    def __enter__(self) -> Progressing:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()
        sys.stderr.flush()

    def stage(self, name: str, done: int = 0, of: int = 0) -> None:
        self.progress.update(self.task, description=name, completed=done, total=of or None)
        if name != self.last_stage:
            err.print(f"[dim]{name} ...[/dim]")
            self.last_stage = name

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        self.progress.update(
            self.task,
            description=f"{trial.number} tried",
            total=None,
            end=None if remaining_s is None else time.monotonic() + remaining_s,
        )
        to_go = "" if remaining_s is None else f"  [cyan]{clock(remaining_s)} to go[/cyan]"
        err.print(f"{trial.id}  {_outcome(trial)}  [dim]{describe(trial.candidate, trial.sizes)}[/dim]{to_go}")


def _outcome(trial: Trial) -> str:
    if trial.quality is None or trial.latency_ms is None or trial.speedup is None:
        return f"[yellow]{trial.state}[/yellow]: {escape(trial.reason or '')}"
    name = "baseline: " if trial.number == 0 else ""
    return (
        f"{name}[bold]{trial.quality.validation:.4f}[/bold] ({0 - trial.quality.drop_validation:+.1f})  "
        f"{trial.latency_ms.median:.2f} ms  [bold]{trial.speedup:.2f}x[/bold]"
    )

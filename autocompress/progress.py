"""How far a search is: lines, a bar with the time to go, and the log ``autocompress``."""

from __future__ import annotations

import json
import logging
import re
import sys
import time

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from autocompress import console
from autocompress.journal import Trial
from autocompress.metrics import Metric
from autocompress.scores import CONSTANT
from autocompress.units import clock

LOG = logging.getLogger("autocompress")
_REASON = 74
"""Characters of a reason, beside the trial's name in 80 columns."""
_LINE_EVERY_S = 60.0
"""How far a stage is, where there is no terminal."""


def is_watched() -> bool:
    """Whether somebody sees standard error as it comes: on a terminal, or in a notebook."""
    return console.err.is_terminal or console.err.is_jupyter


class _ToGo(ProgressColumn):
    """Of the stage, and of the search where that is longer."""

    def render(self, task: Task) -> Text:
        now, end, last = time.monotonic(), task.fields["end"], task.fields["last"]
        if not end:
            return Text("")
        whole = f", {clock(last - now)} in all" if last and last > end else ""
        return Text(f"{clock(end - now)} to go{whole}", style="cyan")


class Progressing:
    """A ``Listener`` that logs a line per stage and trial, and prints it, and how far the search is
    with the time to go: on a terminal as a bar, elsewhere as a line a minute. Trials that were
    refused or failed alike are counted.

    Args:
        time_limit_s: of the whole search.
        shown: whether anything is printed.
        verbose: whether every trial is told in full.
    """

    def __init__(
        self,
        time_limit_s: float | None,
        metric: Metric,
        *,
        shown: bool = True,
        verbose: bool = False,
    ) -> None:
        self.metric, self.shown, self.verbose = metric, shown, verbose
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _ToGo(),
            console=console.err,
            transient=True,
            disable=not (shown and console.err.is_terminal),
        )
        self.last_stage = ""
        self.began = self.stage_began = self.last_line = time.monotonic()
        self.end = self.began + time_limit_s if time_limit_s else None
        self.task = self.progress.add_task("starting", total=None, end=self.end, last=self.end)
        self.whole: list[str] = []
        self.alike, self.last_reason = 0, ""

    def __enter__(self) -> Progressing:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._count()
        self.progress.stop()
        sys.stderr.flush()

    def stage(self, name: str, done: int = 0, of: int = 0) -> None:
        now = time.monotonic()
        if name != self.last_stage:
            self._say(f"{name} ...", style="dim")
            self.last_stage, self.stage_began, self.last_line = name, now, now
        to_go = (now - self.stage_began) * (of - done) / done if done else None
        end = self.end if to_go is None else now + to_go
        self.progress.update(
            self.task, description=name, completed=done, total=of or None, end=end, last=self.end
        )
        if to_go is not None and now - self.last_line >= _LINE_EVERY_S and self.progress.disable:
            self._say(f"{name}: {done} of {of}, {clock(to_go)} to go", style="dim")
            self.last_line = now

    def said(self, line: str) -> None:
        self._say(line)

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        now = time.monotonic()
        self.end = None if remaining_s is None else now + remaining_s
        self.progress.update(
            self.task,
            description=f"{trial.number} tried",
            completed=now - self.began,
            total=self.end and self.end - self.began,
            end=self.end,
            last=self.end,
        )
        told = console.pieces(trial.candidate, trial.sizes)
        what = ", ".join(told) if self.verbose else console.differing(told, self.whole)
        if trial.number == 0:
            self.whole = told
        outcome = _outcome(trial, self.metric)
        if outcome is None:
            self._refused(trial, what)
            return
        watched = remaining_s is None or not self.progress.disable
        to_go = "" if watched else f"  {clock(remaining_s or 0)} to go"
        self._say(Text.assemble(f"{trial.id}  ", *outcome, "  ", (what, "dim"), (to_go, "cyan")))
        if self.verbose:
            self._say(f"      {json.dumps(trial.candidate)}", style="dim")

    def _refused(self, trial: Trial, what: str) -> None:
        """Once for each reason, as long as no other comes between."""
        reason = f"{trial.state}: {trial.reason or ''}"
        kind = re.sub(r"[0-9.]+", "", reason)
        if kind == self.last_reason and not self.verbose:
            self.alike += 1
            return
        short = reason if self.verbose else _shortened(reason)
        self._say(Text.assemble(f"{trial.id}  ", (short, "yellow"), f"  {what}" * self.verbose))
        self.last_reason = kind

    def _count(self) -> None:
        if self.alike:
            alike, self.alike = self.alike, 0
            self._say(f"      and {alike} more likewise", style="dim")
        self.last_reason = ""

    def _say(self, line: str | Text, style: str = "") -> None:
        self._count()
        text = Text(line, style) if isinstance(line, str) else line
        LOG.info(text.plain)
        if self.shown:
            console.err.print(console.folded(text, console.err))


def _shortened(reason: str) -> str:
    """Its first line, as far as it fits beside the trial's name."""
    first = reason.splitlines()[0]
    return first if len(first) <= _REASON else f"{first[: _REASON - 1]}…"


def _outcome(trial: Trial, metric: Metric) -> list[str | tuple[str, str]] | None:
    """Pieces, with their styles; None of a trial without scores."""
    scored = [
        (score.quality, score.timing)
        for score in trial.scores.values()
        if score.quality is not None
    ]
    if not scored:
        return None
    name, unit = ("baseline: ", f" {metric.unit}") if trial.number == 0 else ("", "")
    quality = max((quality for quality, _ in scored), key=lambda q: q.drop_validation)
    change = f" ({metric.change(quality.drop_validation):+.1f}{unit})"
    pieces: list[str | tuple[str, str]] = [name, (metric.text(quality.validation), "bold"), change]
    pieces += [(f"  {CONSTANT}", "yellow")] if quality.constant else []
    for _, timing in scored:
        about, ms = timing.latency_ms.about, timing.latency_ms.value
        pieces += [f"  {about}{ms:.2f} ms  ", (f"{about}{timing.speedup:.2f}x", "bold")]
    return pieces

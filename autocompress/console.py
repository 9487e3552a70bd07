"""What the commands print: tables, lines, progress with the time to go.

Paths and names are the user's: no text is read as markup, styles are given apart from it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from autocompress.formats import words
from autocompress.journal import Trial
from autocompress.pareto import Front, Member, Metric
from autocompress.scores import CONSTANT, Latency, Timing
from autocompress.structure import describe_sizes
from autocompress.units import clock

if TYPE_CHECKING:
    from autocompress.hardware.doctor import Diagnosis

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def fail(message: str) -> None:
    """One line on standard error."""
    line = " ".join(message.splitlines())
    err.print(Text.assemble(("autocompress: ", "bold red"), line))


def stage(name: str) -> None:
    """What is done now, as a line on standard error."""
    err.print(f"{name} ...", style="dim")


def front_table(front: Front) -> Table:
    """The front, fastest first, the baseline last; estimated latencies carry a tilde."""
    split = "test" if front.verified else "validation, not verified"
    timed = f", latencies of {phase_text(front)}" if front.baseline.timing.phase else ""
    estimated = ", latencies estimated from a datasheet" if front.estimated else ""
    metric = front.scale
    table = Table(
        title=(
            f"{len(front.members)} models on {front.hardware['name']} ({metric.name} on "
            f"{split}{timed}{estimated})"
        ),
        title_justify="left",
        caption="; ".join(["chosen on validation", f"hypervolume {front.areas}", *front.notes]),
        caption_justify="left",
    )
    compressed, timing = "size" in front.objectives, front.baseline.timing
    milliseconds = [f"{timing.regime} ms" if timing.beside else "ms", "speedup"]
    if timing.beside:
        milliseconds += [f"{timing.beside.regime} ms", "speedup"]
    names = ["model", *milliseconds, metric.name, f"{metric.lost}, {metric.unit}", "MB"]
    for name in [*names, *(["MB without embedding", "compression"] if compressed else [])]:
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    table.add_column("what it is")
    rows = [
        *front.members,
        *([front.baseline] if front.baseline.id not in {m.id for m in front.members} else []),
    ]
    for member in rows:
        q = member.quality
        about, other = member.latency_ms.about, member.timing.beside
        table.add_row(
            member.id,
            f"{about}{member.latency_ms.value:.2f}",
            f"{about}{member.speedup:.2f}x",
            *([f"{other.latency_ms.value:.2f}", f"{other.speedup:.2f}x"] if other else []),
            metric.text(q.reported),
            f"{q.drop_reported:.2f} ± {front.error_text(member)}",
            f"{member.weight_bytes / 1e6:.1f}",
            *([member.rest, f"{front.compression(member):.2f}x"] if compressed else []),
            describe(member.candidate, member.sizes) + member.mark,
        )
    return table


def trial_lines(trials: Sequence[Trial], fronts: Mapping[str, Front]) -> list[str]:
    """Every trial on every device, whether or not it is on the front; test scores are of the
    front's models only."""
    lines = []
    for trial in trials:
        for name, score in trial.scores.items():
            front, metric = fronts[name], fronts[name].scale
            facts, quality = (
                [str(score.timing), f"{(trial.bytes_on(name) or 0) / 1e6:.1f} MB"],
                score.quality,
            )
            if quality:
                lost = (
                    f"{metric.drop_text(quality.drop_validation)} ± "
                    f"{quality.drop_validation_stderr:.2f}"
                )
                facts.append(
                    f"{metric.name} {metric.text(quality.validation)} on validation ({lost})"
                )
                facts.extend([CONSTANT] if quality.constant else [])
            for member in {
                member.id: member for member in (front.baseline, *front.members)
            }.values():
                if member.id == trial.id and member.quality.test is not None:
                    facts.append(f"{metric.text(member.quality.test)} on test")
            how = describe(trial.candidate, trial.sizes)
            lines.append(f"{trial.id} on {name}: {', '.join(facts)}; {trial.seconds:.0f} s; {how}")
    return lines


def describe(candidate: dict[str, Any], sizes: dict[str, Any] | None) -> str:
    """A candidate in words."""
    start, steps = candidate.get("weights.start", "copied"), candidate.get("recovery.steps", 0)
    teacher = " without a teacher" if candidate.get("recovery.hard_label_weight") == 1 else ""
    return ", ".join(
        [
            describe_sizes(sizes),
            words(candidate),
            *([] if start == "copied" else [f"start {start}"]),
            *([f"{steps} steps{teacher}"] if steps else []),
        ]
    )


def member_line(
    front: Front,
    member: Member,
    confidence: float | None = None,
    max_latency_ms: float | None = None,
) -> str:
    """A model of the front in one line.

    Args:
        confidence: that it was picked with; None where it was asked for by its name.
        max_latency_ms: the limit that it was picked by; its slack is shown.
    """
    q, l, metric = member.quality, member.latency_ms, front.scale
    slack = (
        ""
        if max_latency_ms is None
        else f", {100 * (1 - l.value / max_latency_ms):.0f} % below {max_latency_ms:.3g} ms"
    )
    phase, other = f"{member.timing.phase} " if member.timing.phase else "", member.timing.beside
    beside = (
        f" ({other.regime} {other.latency_ms.value:.3g} ms, {other.speedup:.2f}x)" if other else ""
    )
    bits = "" if q.bits_per_byte is None else f", {q.bits_per_byte:.2f} bits per byte"
    split = "unbiased on test" if front.verified else "on validation, not verified"
    few = f"; {front.too_few}" if front.too_few else ""
    chosen = (
        ""
        if confidence is None
        else f", chosen on validation by {metric.drop_text(q.drop_validation)}, margin "
        f"{front.margin(member, confidence):.2f}"
    )
    return (
        f"{member.id}: {phase}{latency_text(l)}{slack}, "
        f"{member.latency_ms.about}{member.speedup:.2f}x{beside}, "
        f"{metric.name} {metric.text(q.reported)} ({metric.drop_text(q.drop_reported)}){bits} "
        f"{split}{chosen}, "
        f"{member.weight_bytes / 1e6:.1f} MB; "
        f"{describe(member.candidate, member.sizes)}{member.mark}{few}"
    )


def phase_text(front: Front) -> str:
    """What the latencies of a language model's front are of."""
    wanted = front.hardware
    return {
        "decode": "decode after {context_length} tokens",
        "prefill": "prefill of {prompt_length} tokens",
        "end-to-end": "end-to-end from {prompt_length} tokens to {generated_tokens} more",
    }[str(front.baseline.timing.phase)].format(**wanted)


def latency_text(latency: Latency) -> str:
    """A latency with its interval, or with the word that it is an estimate."""
    if latency.basis != "measured":
        return f"~{latency.value:.3g} ms (estimated from a datasheet)"
    low, high = latency.interval
    return f"{latency.value:.3g} ms ({100 * latency.confidence:g} % {low:.3g} to {high:.3g})"


def timing_text(timing: Timing) -> str:
    """All that was measured of one model: a line for each phase of a language model, and for each
    regime."""
    latency = timing.latency_ms
    of = [timing.phase or "", "cold" if timing.regime == "cold" else ""]
    figures = [" ".join([*filter(None, of), latency_text(latency)])]
    if latency.basis == "measured":
        figures.append(
            f"{latency.statistic} of {latency.n} rounds, p90 {latency.p90:.3g} ms, wall "
            f"{timing.wall_ms:.3g} ms"
        )
    if timing.memory_bytes is not None:
        figures.append(
            f"{timing.memory_bytes / 1e6:.0f} MB "
            f"{'at the peak' if latency.basis == 'measured' else 'in its file'}"
        )
    if timing.energy_mj is not None:
        figures.append(f"{timing.energy_mj:.3g} mJ")
    if timing.disturbed:
        figures.append("disturbed: other work took the cores")
    more = (*timing.others, *([timing.beside] if timing.beside else []))
    return "\n".join([", ".join(figures), *map(timing_text, more)])


def foresight_lines(run: Path) -> list[str]:
    """How well latencies were predicted, for each device that has a table, and how rungs ranked."""
    description = json.loads((run / "run.json").read_text(encoding="utf-8"))
    accuracy = description.get("prediction", {})
    estimated = {
        hardware["name"]
        for hardware in description["inputs"]["hardware"]
        if hardware["basis"] == "datasheet"
    }
    return [
        f"latency foretold on {name}: {100 * told['mean_abs_error']:.1f} % off"
        f"{' the estimates' if name in estimated else ''} on average over {told['n']} trials"
        for name, told in accuracy.items()
    ] + [
        f"after {steps} steps students ranked as in the end: correlation "
        f"{told['rank_correlation']:.2f} over {told['n']} of them"
        for steps, told in description.get("rungs", {}).items()
    ]


def diagnosis(device_diagnosis: Diagnosis) -> Text:
    """What the doctor says, a line each."""
    device = device_diagnosis.device
    title = (
        f"{device['cpu']}, {device['cores']} cores, {device['memory_bytes'] / 2**30:.0f} GiB, "
        f"onnxruntime {device['onnxruntime']}"
    )
    lines = [
        Text.assemble(("ok  ", "green") if fine else ("look", "red"), "  ", text)
        for fine, text in device_diagnosis.remarks
    ]
    return Text("\n").join([Text(title), *lines])


_LINE_EVERY_S = 60.0
"""How far a stage is, where there is no terminal."""


class _ToGo(ProgressColumn):
    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        return Text(f"{clock(end - time.monotonic())} to go" if end else "", style="cyan")


class Progressing:
    """A ``Listener`` that prints a line per stage and trial, and how far it is with the time to go:
    on a terminal as a bar, elsewhere as a line a minute.

    Args:
        time_limit_s: of the whole search.
    """

    def __init__(self, time_limit_s: float | None, metric: Metric) -> None:
        self.metric = metric
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _ToGo(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self.end = time.monotonic() + time_limit_s if time_limit_s else None
        self.task = self.progress.add_task("starting", total=None, end=self.end)
        self.last_stage = ""
        self.stage_began = self.last_line = time.monotonic()

    def __enter__(self) -> Progressing:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()
        sys.stderr.flush()

    def stage(self, name: str, done: int = 0, of: int = 0) -> None:
        now = time.monotonic()
        if name != self.last_stage:
            stage(name)
            self.last_stage, self.stage_began, self.last_line = name, now, now
        to_go = (now - self.stage_began) * (of - done) / done if done else None
        end = self.end if to_go is None else now + to_go
        self.progress.update(self.task, description=name, completed=done, total=of or None, end=end)
        if to_go is not None and now - self.last_line >= _LINE_EVERY_S and not err.is_terminal:
            err.print(f"{name}: {done} of {of}, {clock(to_go)} to go", style="dim")
            self.last_line = now

    def said(self, line: str) -> None:
        err.print(line)

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        self.end = None if remaining_s is None else time.monotonic() + remaining_s
        self.progress.update(
            self.task, description=f"{trial.number} tried", total=None, end=self.end
        )
        to_go = "" if remaining_s is None else f"  {clock(remaining_s)} to go"
        line = Text.assemble(f"{trial.id}  ", *_outcome(trial, self.metric), "  ")
        what = (describe(trial.candidate, trial.sizes), "dim")
        err.print(Text.assemble(line, what, (to_go, "cyan")))


def _outcome(trial: Trial, metric: Metric) -> list[str | tuple[str, str]]:
    """Pieces, with their styles."""
    scored = [
        (score.quality, score.timing)
        for score in trial.scores.values()
        if score.quality is not None
    ]
    if not scored:
        return [(trial.state, "yellow"), f": {trial.reason or ''}"]
    name = "baseline: " if trial.number == 0 else ""
    quality = max((quality for quality, _ in scored), key=lambda q: q.drop_validation)
    change = f" ({metric.change(quality.drop_validation):+.1f} {metric.unit})"
    pieces: list[str | tuple[str, str]] = [name, (metric.text(quality.validation), "bold"), change]
    pieces += [(f"  {CONSTANT}", "yellow")] if quality.constant else []
    for _, timing in scored:
        about, ms = timing.latency_ms.about, timing.latency_ms.value
        pieces += [f"  {about}{ms:.2f} ms  ", (f"{about}{timing.speedup:.2f}x", "bold")]
    return pieces

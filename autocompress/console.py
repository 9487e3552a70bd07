"""What the commands print: tables and lines.

Paths and names are the user's: no text is read as markup, styles are given apart from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from autocompress.formats import words
from autocompress.journal import Trial
from autocompress.pareto import Front, Member
from autocompress.scores import CONSTANT, Latency, Timing
from autocompress.structure import describe_sizes

if TYPE_CHECKING:
    from autocompress.hardware.doctor import Diagnosis

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

_INDENT = " " * 6
"""Of a line's second line."""


def fail(message: str) -> None:
    """One line on standard error."""
    line = " ".join(message.splitlines())
    err.print(folded(Text.assemble(("autocompress: ", "bold red"), line), err))


def stage(name: str) -> None:
    """What is done now, as a line on standard error."""
    err.print(f"{name} ...", style="dim")


def front_text(front: Front) -> Group:
    """The front in at most 80 columns: its table, and under it what each model has that the
    baseline has not."""
    split = "test" if front.verified else "validation, not verified"
    timed = f", latencies of {phase_text(front)}" if front.baseline.timing.phase else ""
    estimated = ", latencies estimated from a datasheet" if front.estimated else ""
    whole, notes = front.baseline, ["chosen on validation", f"hypervolume {front.areas}"]
    plain = pieces(whole.candidate, whole.sizes)
    told = {
        member.id: differing(pieces(member.candidate, member.sizes), plain) + member.mark
        for member in front.members
    } | {whole.id: ", ".join(plain) + whole.mark}
    return Group(
        f"{len(front.members)} models on {front.hardware['name']} ({front.scale.name} on "
        f"{split}{timed}{estimated})",
        front_table(front),
        *(folded(f"{name}  {what}", out) for name, what in told.items()),
        "",
        *(folded(note, out) for note in [*notes, *front.notes]),
    )


def front_table(front: Front) -> Table:
    """The front's figures, fastest first, the baseline last; estimated latencies carry a tilde."""
    metric, timing = front.scale, front.baseline.timing
    columns = ["model", f"{timing.regime} ms" if timing.beside else "ms", "speedup"]
    if timing.beside:
        columns += [f"{timing.beside.regime} ms", "speedup"]
    columns += [metric.name, f"{metric.lost}, {metric.unit}", "MB"]
    compressed = "size" in front.objectives
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in [*columns, *(["without embedding", "compression"] if compressed else [])]:
        table.add_column(name, justify="left" if name == "model" else "right")
    for member in {member.id: member for member in (*front.members, front.baseline)}.values():
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


def pieces(candidate: Mapping[str, Any], sizes: Mapping[str, Any] | None) -> list[str]:
    """A candidate in words, one for each thing that can differ."""
    start, steps = candidate.get("weights.start", "copied"), candidate.get("recovery.steps", 0)
    teacher = " without a teacher" if candidate.get("recovery.hard_label_weight") == 1 else ""
    return [
        *describe_sizes(sizes).split(", "),
        *words(candidate).split(", "),
        *([] if start == "copied" else [f"start {start}"]),
        *([f"{steps} steps{teacher}"] if steps else []),
    ]


def describe(candidate: Mapping[str, Any], sizes: Mapping[str, Any] | None) -> str:
    """A candidate in words."""
    return ", ".join(pieces(candidate, sizes))


def differing(told: Sequence[str], whole: Sequence[str]) -> str:
    """What a candidate has that the baseline has not."""
    return ", ".join(piece for piece in told if piece not in whole) or "as the baseline"


def folded(line: str | Text, console: Console) -> Text:
    """A line; on a terminal broken between words, and what follows is indented."""
    text = Text(line) if isinstance(line, str) else line
    if not console.is_terminal:
        return text
    first, *rest = _wrapped(text, console, console.width) or [text]
    left = _wrapped(Text(" ").join(rest), console, console.width - len(_INDENT)) if rest else []
    return Text("\n").join([first, *(Text(_INDENT) + more for more in left)])


def _wrapped(text: Text, console: Console, width: int) -> list[Text]:
    lines = list(text.wrap(console, width))
    for line in lines:
        line.rstrip()
    return lines


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

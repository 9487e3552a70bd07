"""From trials to the front: provisional while a search runs, verified at its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from autocompress.export import annotate
from autocompress.files import write_json
from autocompress.hardware.profile import HardwareProfile
from autocompress.journal import Run, Trial
from autocompress.pareto import Budget, Front, Member, Quality, hypervolume, non_dominated, tied, without_ties
from autocompress.tasks.text_classification import METRIC
from autocompress.workbench import Bits, Workbench, drop, unpack


def standing(trials: Sequence[Trial], budget: Budget, bench: Workbench) -> list[Trial]:
    """The completed trials within the budget, on the validation split, that no other one beats: is better or equal in measured
    speedup and validation quality, and not tied.

    A trial whose files are gone was beaten before.
    """
    fit = [t for t in trials if t.state == "complete" and violation(t, budget) <= 0 and (bench.models / t.id).is_dir()]
    stderr = _paired_stderr(trials, bench)
    members = [_member(trial) for trial in fit]

    def beaten(i: int) -> bool:
        rivals = [j for j in range(len(fit)) if j != i and non_dominated([losses(fit[j]), losses(fit[i])]) == [0]]
        return any(not tied(members[i], members[j], stderr(members[i], members[j])) for j in rivals)

    return [trial for i, trial in enumerate(fit) if not beaten(i)]


def _paired_stderr(trials: Sequence[Trial], bench: Workbench) -> Callable[[Member, Member], float]:
    answers = {trial.id: unpack(trial.correct, len(bench.task.validation.rows)) for trial in trials if trial.correct}
    return lambda a, b: drop(answers[a.id], answers[b.id])[1]


def misses(trial: Trial, budget: Budget) -> dict[str, float]:
    """``Budget.violations`` on the validation split; of speed alone for a trial that was not scored."""
    assert trial.latency_ms is not None and trial.speedup is not None
    share, lost = (trial.quality.validation, trial.quality.drop_validation) if trial.quality else (1.0, 0.0)
    return budget.violations(trial.latency_ms.median, trial.speedup, share, lost)


def violation(trial: Trial, budget: Budget) -> float:
    """Sum of what is missed; zero when the budget is met."""
    return sum(max(0.0, miss) for miss in misses(trial, budget).values())


def losses(trial: Trial) -> tuple[float, float]:
    """(latency relative to the baseline, 1 - validation quality), both to be minimised.

    A stopped trial counts with the quality it had; one that was never scored with none.
    """
    assert trial.speedup is not None
    if trial.quality is not None:
        return 1 / trial.speedup, 1 - trial.quality.validation
    return 1 / trial.speedup, 1 - trial.rungs[-1][1] if trial.rungs else 1.0


def covered(trials: Sequence[Trial]) -> float:
    """Hypervolume of the completed trials, on validation quality."""
    done = [trial for trial in trials if trial.state == "complete" and trial.quality and trial.speedup]
    return hypervolume([(1 / (t.speedup or 1), t.quality.drop_validation if t.quality else 0) for t in done])


def _member(trial: Trial) -> Member:
    assert trial.quality and trial.latency_ms and trial.speedup and trial.speedup_ci95 and trial.sizes
    return Member(
        trial.id,
        trial.candidate,
        trial.quality,
        trial.latency_ms,
        trial.speedup,
        trial.speedup_ci95,
        trial.weight_bytes or 0,
        trial.path or "",
        trial.sizes,
    )


def write_front(run: Run, front: Front) -> None:
    """Replace ``front.json``."""
    write_json(run.folder / "front.json", front.as_dict())


def provisional(trials: Sequence[Trial], chosen: Sequence[Trial], budget: Budget, profile: HardwareProfile) -> Front:
    """The front so far, on the validation split and the timings made during the search.

    Args:
        chosen: the standing ones.
    """
    fit = [chosen[i] for i in non_dominated([losses(trial) for trial in chosen])]
    members = sorted((_member(trial) for trial in fit), key=lambda m: m.latency_ms.median)
    return Front(METRIC, _member(trials[0]), profile.as_dict(), budget.as_dict(), covered(trials), tuple(members), verified=False)


def verified(trials: Sequence[Trial], bench: Workbench, profile: HardwareProfile) -> tuple[Front, list[Member]]:
    """The final front: standing trials timed once more in a fresh process in turn with the baseline, and scored on the test
    split from their ONNX files; what is over budget, tied or dominated by those numbers goes.

    Returns:
        The front, and the members that are over budget.
    """
    chosen = standing(trials, bench.budget, bench)
    files = [bench.models / trial.id / "model.onnx" for trial in chosen]
    baseline_latency, timings = bench.timer(bench.baseline_file, files, final=True)
    baseline_answers = bench.answers(bench.baseline_file, bench.task.test)
    uncut = _member(trials[0])
    tested = _tested(uncut.quality, baseline_answers, baseline_answers)
    baseline = replace(uncut, latency_ms=baseline_latency, quality=tested)
    members = []
    for trial, file, timing in zip(chosen, files, timings, strict=True):
        found = replace(_member(trial), latency_ms=timing.latency_ms, speedup=timing.speedup, speedup_ci95=timing.speedup_ci95)
        quality = _tested(found.quality, baseline_answers, bench.answers(file, bench.task.test))
        members.append(baseline if trial.number == 0 else replace(found, quality=quality))
    fit = [member for member in members if all(miss <= 0 for miss in bench.budget.of(member).values())]
    untied = without_ties(fit, _paired_stderr(trials, bench))
    stay = [untied[i] for i in non_dominated([(m.latency_ms.median, 1 - m.quality.validation) for m in untied])]
    points = [(1 / member.speedup, member.quality.drop_validation) for member in stay]
    for member in {m.id: m for m in (baseline, *stay)}.values():
        annotate(bench.run.folder / member.path, {"scores": member_scores(member)})
    front = Front(METRIC, baseline, profile.as_dict(), bench.budget.as_dict(), hypervolume(points), tuple(stay), verified=True)
    return front, [member for member in members if member not in fit]


def keep_models(run: Run, kept: Sequence[Trial | Member]) -> None:
    """Delete all model folders but these and the baseline's."""
    names = {"t000", *(item.id for item in kept)}
    for folder in (run.folder / "models").iterdir():
        if folder.name not in names:
            shutil.rmtree(folder)


def member_scores(member: Member) -> dict[str, object]:
    """What ``autocompress.json`` says of a member's scores."""
    described = asdict(member)
    return {key: described[key] for key in ("quality", "latency_ms", "speedup", "speedup_ci95", "weight_bytes")}


def _tested(quality: Quality, baseline: Bits, answers: Bits) -> Quality:
    lost, lost_stderr = drop(baseline, answers)
    return replace(
        quality,
        test=float(answers.mean()),
        test_stderr=float(np.std(answers, ddof=1)) / len(answers) ** 0.5,
        n_test=len(answers),
        drop_test=lost,
        drop_test_stderr=lost_stderr,
    )

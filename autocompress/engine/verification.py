"""From trials to fronts, one for each device: provisional while a search runs, verified at its
end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ParamSpec, TypeVar

from autocompress.artifact import annotate
from autocompress.engine.workbench import Workbench
from autocompress.errors import CandidateFailed
from autocompress.files import write_json
from autocompress.interfaces import Device, Evidence
from autocompress.journal import Run, Trial
from autocompress.pareto import (
    SCHEMA,
    Budget,
    Difference,
    Front,
    Member,
    Metric,
    hypervolume,
    non_dominated,
    tied,
    without_ties,
)
from autocompress.scores import Quality, Timing

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def standing(trials: Sequence[Trial], name: str, bench: Workbench) -> list[Trial]:
    """The completed trials within a device's limits, on the validation split, that no other one
    beats there: is better or equal in measured speedup and validation quality, and not tied.

    A trial whose files are gone was beaten before.
    """
    fit = [
        t
        for t in trials
        if t.state == "complete" and _fits(t, name, bench) and (bench.models / t.id).is_dir()
    ]
    difference = _difference(trials, name, bench)
    members = [_member(trial, name) for trial in fit]

    def beaten(i: int) -> bool:
        rivals = [
            j
            for j in range(len(fit))
            if j != i and non_dominated([_point(members[j]), _point(members[i])]) == [0]
        ]
        return any(not tied(members[i], members[j], difference) for j in rivals)

    return [trial for i, trial in enumerate(fit) if not beaten(i)]


def all_standing(trials: Sequence[Trial], bench: Workbench) -> list[Trial]:
    """``standing`` on any device."""
    found = {trial.id: trial for name in bench.devices for trial in standing(trials, name, bench)}
    return list(found.values())


def _fits(trial: Trial, name: str, bench: Workbench) -> bool:
    return (
        violation(trial, name, bench.budgets[name]) <= 0
        and bench.too_much(name, trial.scores[name].timing) is None
    )


def _point(member: Member) -> tuple[float, float]:
    return 1 / member.speedup, member.quality.drop_validation


def _difference(trials: Sequence[Trial], name: str, bench: Workbench) -> Difference:
    evidence = {
        trial.id: bench.recorded(score)
        for trial in trials
        if (score := trial.scores.get(name)) and score.evidence
    }
    return lambda a, b: bench.task.drop(evidence[a.id], evidence[b.id], bench.task.validation)


def misses(trial: Trial, name: str, budget: Budget) -> dict[str, float]:
    """``Budget.violations`` on the validation split; of speed alone for a trial that was not
    scored."""
    score = trial.scores[name]
    quality, lost = (
        (score.quality.validation, score.quality.drop_validation) if score.quality else (1.0, 0.0)
    )
    return budget.violations(score.timing.latency_ms.value, score.timing.speedup, quality, lost)


def violation(trial: Trial, name: str, budget: Budget) -> float:
    """Sum of what is missed; zero when the budget is met."""
    return sum(max(0.0, miss) for miss in misses(trial, name, budget).values())


def losses(trial: Trial, metric: Metric) -> tuple[float, ...]:
    """Latency relative to the baseline on each device, then the drop on validation examples on the
    worst, all to be minimised.

    A stopped trial counts with the drop it had; one that was never scored with the largest; one
    that was never timed with the latency that was predicted.
    """
    latencies = [1 / score.timing.speedup for score in trial.scores.values()] or list(
        trial.predicted.values()
    )
    return (*latencies, trial.rungs[-1][1] if trial.rungs else metric.largest_drop)


def _covered(trials: Sequence[Trial], name: str, metric: Metric) -> float:
    """Hypervolume of the completed trials, on validation quality."""
    scores = [trial.scores[name] for trial in trials if trial.state == "complete"]
    points = [
        (1 / score.timing.speedup, score.quality.drop_validation)
        for score in scores
        if score.quality
    ]
    return hypervolume(points, metric.worst_drop)


def _member(trial: Trial, name: str) -> Member:
    score = trial.scores[name]
    assert score.quality and trial.sizes and trial.path
    return Member(
        trial.id,
        trial.candidate,
        score.quality,
        score.timing,
        trial.weight_bytes or 0,
        trial.path,
        trial.sizes,
    )


def write_fronts(run: Run, fronts: Sequence[Front]) -> None:
    """Replace ``front.json``."""
    write_json(
        run.folder / "front.json",
        {"schema": SCHEMA, "fronts": [front.as_dict() for front in fronts]},
    )


def provisional(trials: Sequence[Trial], name: str, bench: Workbench) -> Front:
    """A device's front so far, on the validation split and the timings made during the search."""
    found = [_member(trial, name) for trial in standing(trials, name, bench)]
    members = sorted(
        (found[i] for i in non_dominated([_point(m) for m in found])),
        key=lambda m: m.latency_ms.value,
    )
    return _front(
        name,
        bench,
        _member(trials[0], name),
        _covered(trials, name, bench.task.metric),
        members,
        verified=False,
    )


@dataclass
class Verified:
    """The final fronts, one of each device.

    Args:
        rejected: members that are over a device's budget, by device.
        failed: why trials could not be timed or scored, by trial.
    """

    fronts: list[Front] = field(default_factory=list)
    rejected: dict[str, list[Member]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def attempted(
        self,
        trial: Trial,
        action: Callable[_Given, _Result],
        *args: _Given.args,
        **kwargs: _Given.kwargs,
    ) -> _Result | None:
        """What the action gives; None, noted, where it fails for a trial that is not the
        baseline."""
        try:
            return action(*args, **kwargs)
        except CandidateFailed as error:
            if trial.number == 0:
                raise
            self.failed[trial.id] = str(error)
            return None


def verified(trials: Sequence[Trial], bench: Workbench) -> Verified:
    """Standing trials timed once more in a fresh process in turn with the baseline, and scored on
    the test split from their files; what fails, is over budget, tied or dominated by those numbers
    goes.

    Raises:
        CandidateFailed: the baseline cannot be timed or scored.
    """
    found = Verified()
    tested = {
        trial.id: evidence
        for trial in (trials[0], *all_standing(trials, bench))
        if (
            evidence := found.attempted(
                trial, bench.evidence, bench.models / trial.id, bench.task.test
            )
        )
    }
    for name, device in bench.devices.items():
        there = [trial for trial in standing(trials, name, bench) if trial.id in tested]
        baseline_timing, timings = _timed(there, device, bench, found)
        reference = tested["t000"][name]
        uncut = _member(trials[0], name)
        baseline = replace(
            uncut,
            timing=baseline_timing,
            quality=_tested(bench, uncut.quality, reference, reference),
        )
        members = []
        for trial in there:
            member, mine = _member(trial, name), tested[trial.id][name]
            quality = found.attempted(trial, _tested, bench, member.quality, reference, mine)
            if quality and trial.id in timings:
                members.append(
                    baseline
                    if trial.number == 0
                    else replace(member, timing=timings[trial.id], quality=quality)
                )
        fit = [
            m
            for m in members
            if bench.budgets[name].admits(m) and bench.too_much(name, m.timing) is None
        ]
        found.rejected[name] = [member for member in members if member not in fit]
        untied = without_ties(fit, _difference(trials, name, bench))
        stay = [
            untied[i]
            for i in non_dominated(
                [(m.latency_ms.value, m.quality.drop_validation) for m in untied]
            )
        ]
        area = hypervolume(
            [(1 / member.speedup, member.quality.drop_validation) for member in stay],
            bench.task.metric.worst_drop,
        )
        found.fronts.append(_front(name, bench, baseline, area, stay, verified=True))
    _annotate(found.fronts, bench)
    return found


def _timed(
    trials: Sequence[Trial], device: Device, bench: Workbench, found: Verified
) -> tuple[Timing, dict[str, Timing]]:
    """The baseline and the trials, all in turn; each alone with the baseline where one of them
    fails."""

    def timed(*some: Trial) -> tuple[Timing, dict[str, Timing]]:
        baseline, timings = device.time(
            bench.baseline_folder, [bench.models / trial.id for trial in some], final=True
        )
        return baseline, dict(zip([trial.id for trial in some], timings, strict=True))

    try:
        return timed(*trials)
    except CandidateFailed:
        baseline, _ = timed()
        alone = [found.attempted(trial, timed, trial) for trial in trials]
        return baseline, {name: timing for one in alone if one for name, timing in one[1].items()}


def _front(
    name: str,
    bench: Workbench,
    baseline: Member,
    area: float,
    members: Sequence[Member],
    *,
    verified: bool,
) -> Front:
    device = bench.devices[name]
    generation = device.profile.generation(device.lengths) if baseline.timing.phase else {}
    hardware = device.profile.as_dict() | {"lengths": list(device.lengths)} | generation
    return Front(
        bench.task.metric.name,
        baseline,
        hardware,
        bench.budgets[name].as_dict(),
        area,
        tuple(members),
        verified,
    )


def _annotate(fronts: Sequence[Front], bench: Workbench) -> None:
    """Write the scores of every member into its folder, and what its latency was measured for."""
    scores: dict[str, dict[str, object]] = {}
    for front in fronts:
        for member in (front.baseline, *front.members):
            described = asdict(member)
            found = {key: described[key] for key in ("quality", "timing", "weight_bytes")}
            scores.setdefault(member.path, {})[front.hardware["name"]] = found | {
                "lengths": front.hardware["lengths"]
            }
    for path, found_by_device in scores.items():
        annotate(bench.run.folder / path, {"scores": found_by_device})


def keep_models(run: Run, kept: Sequence[Trial | Member]) -> None:
    """Delete all model folders but these and the baseline's."""
    names = {"t000", *(item.id for item in kept)}
    for folder in (run.folder / "models").iterdir():
        if folder.name not in names:
            shutil.rmtree(folder)


def _tested(bench: Workbench, quality: Quality, baseline: Evidence, evidence: Evidence) -> Quality:
    score, stderr = bench.task.score(evidence, bench.task.test)
    lost, lost_stderr = bench.task.drop(baseline, evidence, bench.task.test)
    return replace(
        quality,
        test=score,
        test_stderr=stderr,
        n_test=len(evidence),
        drop_test=lost,
        drop_test_stderr=lost_stderr,
        bits_per_byte=bench.task.bits_per_byte(evidence, bench.task.test),
    )

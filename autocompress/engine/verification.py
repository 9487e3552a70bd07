"""From trials to fronts, one for each device: provisional while a search runs, verified at its
end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from autocompress.artifact import annotate
from autocompress.engine.scoring import Scorer
from autocompress.errors import CandidateFailed, UserError
from autocompress.files import keep_only, whole_files, write_json
from autocompress.graphs.reading import embedding_bytes
from autocompress.graphs.runtime import loading_ms
from autocompress.interfaces import Device, Evidence
from autocompress.journal import Run, Trial
from autocompress.limits import Facts
from autocompress.pareto import (
    LATENCY_AND_QUALITY,
    SCHEMA,
    Difference,
    Front,
    Member,
    Metric,
    hypervolume,
    non_dominated,
    point,
    tied,
    without_ties,
)
from autocompress.scores import Quality, Timing

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def standing(trials: Sequence[Trial], name: str, scorer: Scorer) -> list[Trial]:
    """The completed trials within a device's limits, on the validation split, that no other one
    beats there: is better or equal in measured speedup and validation quality, and not tied.

    A trial whose files are gone was beaten before.
    """
    fit = [
        t
        for t in trials
        if t.state == "complete" and _fits(t, name, scorer) and (scorer.models / t.id).is_dir()
    ]
    difference = _difference(trials, name, scorer)
    members = [Member.of(trial, name) for trial in fit]
    points = [point(member, scorer.objectives) for member in members]

    def beaten(i: int) -> bool:
        rivals = [
            j for j in range(len(fit)) if j != i and non_dominated([points[j], points[i]]) == [0]
        ]
        return any(not tied(members[i], members[j], difference, scorer.objectives) for j in rivals)

    return [trial for i, trial in enumerate(fit) if not beaten(i)]


def all_standing(trials: Sequence[Trial], scorer: Scorer) -> list[Trial]:
    """``standing`` on any device."""
    by_id = {trial.id: trial for name in scorer.devices for trial in standing(trials, name, scorer)}
    return list(by_id.values())


def _fits(trial: Trial, name: str, scorer: Scorer) -> bool:
    return scorer.budgets[name].admits(facts(trial, name, scorer))


def _difference(trials: Sequence[Trial], name: str, scorer: Scorer) -> Difference:
    evidence = {
        trial.id: scorer.recorded(score)
        for trial in trials
        if (score := trial.scores.get(name)) and score.evidence
    }

    def difference(a: Member, b: Member) -> tuple[float, float]:
        pair, known = (name, a.id, b.id), scorer.differences
        if pair not in known:
            part = scorer.task.validation
            known[pair] = scorer.task.drop(evidence[a.id], evidence[b.id], part)
        return known[pair]

    return difference


def facts(trial: Trial, name: str, scorer: Scorer) -> Facts:
    """What a device's limits are checked on during the search: the validation split, with the
    margin of a model that has no rivals, and no quality of a trial that was not scored."""
    timing, quality = trial.scores[name].timing, trial.scores[name].quality
    return Facts(
        timing.latency_ms.value,
        timing.speedup,
        trial.bytes_on(name),
        scorer.baseline_bytes,
        timing.memory_bytes,
        quality.validation if quality else None,
        quality.drop_validation if quality else None,
        (quality and quality.validation_stderr) or 0.0,
        quality.drop_validation_stderr if quality else 0.0,
        constant=quality is not None and quality.constant,
    )


def losses(
    trial: Trial,
    metric: Metric,
    objectives: Collection[str] = LATENCY_AND_QUALITY,
    baseline_bytes: int = 1,
) -> tuple[float, ...]:
    """Latency relative to the baseline on each device, bytes relative to the baseline's where they
    are most, as far as they are objectives, then the drop on validation examples on the worst
    device, all to be minimised.

    A trial that was never scored counts with the largest drop; one
    that was never timed with the latency that was predicted, and with the baseline's bytes.
    """
    latencies = [1 / score.timing.speedup for score in trial.scores.values()] or list(
        trial.predicted.values()
    )
    held = [trial.bytes_on(name) for name in trial.scores] or [trial.weight_bytes]
    size = max(one or baseline_bytes for one in held) / baseline_bytes
    return (
        *(latencies if "latency" in objectives else ()),
        *([size] if "size" in objectives else ()),
        trial.rungs[-1][1] if trial.rungs else metric.largest_drop,
    )


def _covered(members: Sequence[Member], scorer: Scorer) -> tuple[float, float | None]:
    """Hypervolumes on validation quality: of latency, and of size where it is an objective."""
    drops = [member.quality.drop_validation for member in members]
    latencies = [1 / member.speedup for member in members]
    sizes = [member.weight_bytes / scorer.baseline_bytes for member in members]
    worst = scorer.task.metric.worst_drop
    by_size = hypervolume(list(zip(sizes, drops, strict=True)), worst)
    return (
        hypervolume(list(zip(latencies, drops, strict=True)), worst),
        by_size if "size" in scorer.objectives else None,
    )


def write_fronts(run: Run, fronts: Sequence[Front]) -> None:
    """Replace ``front.json``, and note in ``run.json`` by how much choosing flatters what was
    tested."""
    write_json(
        run.folder / "front.json",
        {"schema": SCHEMA, "fronts": [front.as_dict() for front in fronts]},
    )
    known = {front.hardware["name"]: front.optimism_points for front in fronts}
    optimism = {
        name: {"mean": points[0], "stderr": points[1]} for name, points in known.items() if points
    }
    if optimism:
        run.note(optimism_points=optimism)


def provisional(trials: Sequence[Trial], name: str, scorer: Scorer) -> Front:
    """A device's front so far, on the validation split and the timings made during the search."""
    standing_members = [Member.of(trial, name) for trial in standing(trials, name, scorer)]
    points = [point(member, scorer.objectives) for member in standing_members]
    members = sorted(
        (standing_members[i] for i in non_dominated(points)), key=lambda m: m.latency_ms.value
    )
    return _front(
        name,
        scorer,
        Member.of(trials[0], name),
        _covered([Member.of(t, name) for t in trials if t.state == "complete"], scorer),
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


def verified(
    trials: Sequence[Trial],
    scorer: Scorer,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Verified:
    """Standing trials timed once more in a fresh process in turn with the baseline, and scored on
    the test split from their files; what fails, is over budget, tied or dominated goes, by those
    timings and by validation figures: the test score is for the report alone.

    Args:
        progress: hears how much is done, of how much: every model is scored, and every device times
            all of them.

    Raises:
        CandidateFailed: the baseline cannot be timed or scored.
    """
    outcome, tested = Verified(), {}
    candidates = (trials[0], *(t for t in all_standing(trials, scorer) if t.number))
    of = len(candidates) * (1 + len(scorer.devices))
    for done, trial in enumerate(candidates):
        progress(done, of)
        if evidence := outcome.attempted(trial, _evidence_on_test, trial, scorer):
            tested[trial.id] = evidence
    for done, (name, device) in enumerate(scorer.devices.items(), 1):
        progress(done * len(candidates), of)
        there = [trial for trial in standing(trials, name, scorer) if trial.id in tested]
        others = [trial for trial in there if trial.number]
        baseline_timing, timings = _timed(others, device, scorer, outcome)
        reference = tested["t000"][name]
        uncut = Member.of(trials[0], name)
        baseline = replace(
            uncut,
            timing=baseline_timing,
            quality=_tested(scorer, uncut.quality, reference, reference),
        )
        members = []
        for trial in there:
            member, mine = Member.of(trial, name), tested[trial.id][name]
            quality = outcome.attempted(trial, _tested, scorer, member.quality, reference, mine)
            if quality and trial.number == 0:
                members.append(baseline)
            elif quality and trial.id in timings:
                members.append(replace(member, timing=timings[trial.id], quality=quality))
        limits, uncut_bytes, rivals = scorer.budgets[name], baseline.weight_bytes, len(members)
        fit = [m for m in members if limits.admits(m.facts(uncut_bytes, rivals))]
        outcome.rejected[name] = [member for member in members if member not in fit]
        untied = without_ties(fit, _difference(trials, name, scorer), scorer.objectives)
        points = [point(member, scorer.objectives, together=True) for member in untied]
        stay = _marked([untied[i] for i in non_dominated(points)], name, tested, scorer)
        areas = _covered(stay, scorer)
        outcome.fronts.append(_front(name, scorer, baseline, areas, stay, verified=True))
    _annotate(outcome.fronts, scorer)
    return outcome


def _marked(
    members: Sequence[Member],
    name: str,
    tested: Mapping[str, Mapping[str, Evidence]],
    scorer: Scorer,
) -> list[Member]:
    """The members, each with the name of the one that beats it on the test split; it stays, since
    that split chooses nothing."""
    others = [objective for objective in scorer.objectives if objective != "quality"]
    points = {member.id: point(member, others, together=True) for member in members}

    def lead(rival: Member, over: Member) -> float:
        """In standard errors; 0 where the rival is slower or larger."""
        pairs = zip(points[rival.id], points[over.id], strict=True)
        if any(theirs > own for theirs, own in pairs):
            return 0.0
        evidence, better = tested[over.id][name], tested[rival.id][name]
        lost, stderr = scorer.task.drop(better, evidence, scorer.task.test)
        return lost / stderr if stderr else 0.0

    def marked(member: Member) -> Member:
        best = max(members, key=partial(lead, over=member))
        beaten_by = best.id if lead(best, member) > 1 else None
        return replace(member, quality=replace(member.quality, beaten_by=beaten_by))

    return [marked(member) for member in members]


def _evidence_on_test(trial: Trial, scorer: Scorer) -> dict[str, Evidence]:
    """Raises:
    CandidateFailed: its files are no longer as they were written, or it cannot answer.
    """
    folder = scorer.models / trial.id
    try:
        whole_files(folder)
    except UserError as error:
        raise CandidateFailed(str(error)) from error
    return scorer.evidence(folder, scorer.task.test)


def _timed(
    trials: Sequence[Trial], device: Device, scorer: Scorer, outcome: Verified
) -> tuple[Timing, dict[str, Timing]]:
    """The baseline and the trials, all in turn; each alone with the baseline where one of them
    fails."""

    def timed(*some: Trial) -> tuple[Timing, dict[str, Timing]]:
        baseline, timings = device.time(
            scorer.baseline, [scorer.models / trial.id for trial in some], final=True
        )
        return baseline, dict(zip([trial.id for trial in some], timings, strict=True))

    try:
        return timed(*trials)
    except CandidateFailed:
        baseline, _ = timed()
        alone = [outcome.attempted(trial, timed, trial) for trial in trials]
        return baseline, {name: timing for one in alone if one for name, timing in one[1].items()}


def _front(
    name: str,
    scorer: Scorer,
    baseline: Member,
    areas: tuple[float, float | None],
    members: Sequence[Member],
    *,
    verified: bool,
) -> Front:
    device = scorer.devices[name]
    if verified and "size" in scorer.objectives:
        baseline, *members = (_filed(member, scorer) for member in (baseline, *members))
    on_test = [(1 / member.speedup, member.quality.drop_reported) for member in members]
    generation = device.profile.generation(device.lengths) if baseline.timing.phase else {}
    hardware = device.profile.as_dict() | {"lengths": list(device.lengths)} | generation
    return Front(
        scorer.task.metric.name,
        baseline,
        hardware,
        scorer.budgets[name].as_dict(),
        areas[0],
        tuple(members),
        verified,
        scorer.objectives,
        areas[1],
        hypervolume(on_test, scorer.task.metric.worst_drop) if verified else None,
        scorer.commonest(scorer.task.test if verified else scorer.task.validation),
        run=scorer.models.parent,
    )


def _filed(member: Member, scorer: Scorer) -> Member:
    """With what its file tells, where the device ran the file itself."""
    file = scorer.models.parent / member.path / "model.onnx"
    if member.timing.weight_bytes is not None:
        return member
    return replace(member, embedding_bytes=embedding_bytes(file), load_ms=loading_ms(file))


def _annotate(fronts: Sequence[Front], scorer: Scorer) -> None:
    """Write the scores of every member into its folder, and what its latency was measured for."""
    scores: dict[str, dict[str, object]] = {}
    for front in fronts:
        for member in (front.baseline, *front.members):
            described = asdict(member)
            figures = {key: described[key] for key in ("quality", "timing", "weight_bytes")}
            scores.setdefault(member.path, {})[front.hardware["name"]] = figures | {
                "lengths": front.hardware["lengths"]
            }
    for path, by_device in scores.items():
        annotate(scorer.models.parent / path, {"scores": by_device})


def keep_models(models: Path, names: Collection[str]) -> None:
    """Delete all model folders but these; raises as ``keep_only``."""
    keep_only(models, names, r"t\d{3,}")


def _tested(scorer: Scorer, quality: Quality, baseline: Evidence, evidence: Evidence) -> Quality:
    score, stderr = scorer.task.score(evidence, scorer.task.test)
    lost, lost_stderr = scorer.task.drop(baseline, evidence, scorer.task.test)
    return replace(
        quality,
        test=score,
        test_stderr=stderr,
        n_test=len(evidence),
        drop_test=lost,
        drop_test_stderr=lost_stderr,
        bits_per_byte=scorer.task.bits_per_byte(evidence, scorer.task.test),
    )

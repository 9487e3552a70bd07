"""A search over recorded learning curves, in simulated time.

What proposes is the engine's own: its ``Proposer`` with the ladder, a sampler, and the allowance of
time. What would be trained, converted, timed and scored is looked up, and the clock goes on by what
it took when it was recorded. Three things are simpler than in a search. The time is that for
candidates alone: no teacher is tuned, no uncut model timed, nothing verified. A sampler asks for
any point of the space, and has the recorded student that is nearest to it (``Nearest``), so what
all policies minimise is constant around each recorded point. And steps between two rungs, as they
come of fitting them to the time left, take their time but give what the lower rung gave.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from learning_curves import Artifact, Curve, Curves, Right

from autocompress.candidate import Candidate, Value
from autocompress.engine import ladder
from autocompress.engine.clock import Allowance, Clock, Pace
from autocompress.engine.foresight import Foresight
from autocompress.engine.making import Maker
from autocompress.engine.proposing import Proposal, Proposer
from autocompress.engine.request import Request
from autocompress.engine.scoring import Scorer
from autocompress.engine.verification import all_standing, keep_models, losses
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Sampler
from autocompress.journal import Trial
from autocompress.limits import Limits
from autocompress.pareto import hypervolume, non_dominated
from autocompress.plan import Plan
from autocompress.scores import Latency, Quality, Score, Timing
from autocompress.search_space import Choices, Parameter, SearchSpace
from autocompress.structure import Structure
from autocompress.tasks.text_classification import Split, TextClassification
from autocompress.techniques import FORMAT_NAMES
from autocompress.training.steps import trunk_steps

_DEVICE = "cpu-1-thread"
_BESIDE = 0.25
"""What a setting counts, in the distance of two points, that is no amount of the model kept."""
_LOST_STEPS = 32
"""After which a training that does not end in time is noticed."""
_HALVES = 50
"""Times that the validation split is cut in two."""
Making = Callable[[SearchSpace], Sampler]
"""A sampler of a space."""


@contextmanager
def without_ladder() -> Iterator[None]:
    """Every candidate is trained in full at once, as none has as many steps as two first rungs;
    and new ones are begun as long as there is time, as they would be without the engine's
    foresight, though one that will not end in time is noticed early."""

    def time_left(allowance: Allowance, *args: Any, **options: Any) -> bool:
        return allowance.left > 0

    with patch.object(ladder, "FIRST_RUNG", 10**9), patch.object(Allowance, "fits", time_left):
        yield


@dataclass(frozen=True)
class Outcome:
    """Of one search.

    Args:
        history: (seconds, hypervolume on the test split of the members chosen on validation so
            far), each time that a student ended.
        members: (speedup, drop on validation, drop on test) in the end, but for the uncut model.
        halved: by how much choosing on one half of the validation split flatters the members on
            that half against the other one, points, a mean over many cuts in two.
        artifacts: that were scored.
    """

    history: tuple[tuple[float, float], ...]
    members: tuple[tuple[float, float, float], ...]
    halved: float
    artifacts: int

    def at(self, seconds: float) -> float:
        """The hypervolume by then."""
        return [area for ended, area in self.history if ended <= seconds][-1]

    def reached(self, area: float) -> float:
        """The seconds that this hypervolume took; infinite where it was not reached."""
        return next((ended for ended, known in self.history if known >= area), math.inf)


def dealt(curves: Curves, seed: int) -> Curves:
    """The same with all examples dealt anew to the validation and the test split, which are of the
    sizes that they were: students have seen neither."""
    count = len(curves.uncut.artifacts[0].right)
    order = np.random.default_rng(seed).permutation(count)

    def of(curve: Curve) -> Curve:
        shuffled = (replace(one, right=one.right[order]) for one in curve.artifacts)
        return replace(curve, artifacts=tuple(shuffled))

    return replace(curves, uncut=of(curves.uncut), students=tuple(map(of, curves.students)))


def space_of(curves: Curves) -> SearchSpace:
    """The space that was recorded, less the steps beyond the last rung."""
    space = SearchSpace.load(str(curves.about["space"]))
    steps = Choices((curves.steps,))
    return replace(
        space,
        parameters=tuple(
            replace(p, values=steps) if p.name == "recovery.steps" else p for p in space.parameters
        ),
        corners=tuple({**corner, "recovery.steps": curves.steps} for corner in space.corners),
    )


class Nearest:
    """A ``Sampler`` that has the nearest recorded student tried in place of each point that another
    one asks for, and tells that one of its own point.

    The distance is Gower's (1971, A general coefficient of similarity and some of its properties):
    the mean, over settings that mean something in both points, of the share of the range that lies
    between two numbers, or 1 for names that differ. What is no amount of the model kept counts a
    quarter.
    """

    def __init__(self, inner: Sampler, space: SearchSpace, points: Sequence[Mapping[str, Value]]):
        self.inner, self.space, self.points = inner, space, points

    def ask(self) -> tuple[int, dict[str, Value]]:
        handle, chosen = self.inner.ask()
        apart = [self.distance(point, chosen) for point in self.points]
        return handle, dict(self.points[apart.index(min(apart))])

    def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
        self.inner.tell(handle, losses, violation)

    def learn(
        self, chosen: Mapping[str, Value], losses: Sequence[float], violation: float = 0.0
    ) -> None:
        self.inner.learn(chosen, losses, violation)

    def distance(self, one: Mapping[str, Value], other: Mapping[str, Value]) -> float:
        """Of two points."""
        both = [p for p in self.space.parameters if p.name in one and p.name in other]
        weights = [1.0 if p.name.endswith(".keep") else _BESIDE for p in both]
        apart = [_apart(p, one[p.name], other[p.name]) for p in both]
        return sum(w * own for w, own in zip(weights, apart, strict=True)) / sum(weights)


def _apart(parameter: Parameter, one: Value, other: Value) -> float:
    values = parameter.values
    if isinstance(values, Choices):
        ordered = values.ascending
        if ordered is None or len(ordered) == 1:
            return float(one != other)
        low, high, log = float(ordered[0]), float(ordered[-1]), False
    else:
        low, high, log = values.low, values.high, values.log
    scale = math.log if log else float
    return abs(scale(float(one)) - scale(float(other))) / (scale(high) - scale(low))  # type: ignore[arg-type]


class SimulatedClock(Clock):
    """Goes on when it is told to."""

    now = 0.0

    @property
    def spent(self) -> float:
        return self.now


class _Names:
    """In place of a ``Maker``: the names of students."""

    def __init__(self, full: Plan) -> None:
        self.full = full

    def id_of(self, plan: Plan, candidate: Candidate) -> str:
        return _key(candidate)

    def trunk_of(self, plan: Plan, candidate: Candidate) -> str:
        return _key(candidate, "recovery.steps")


class _Recorded(Foresight):
    """Knows the plans of recorded students, and foretells nothing."""

    def __init__(self, plans: Mapping[str, Plan], full: Plan, scorer: Scorer) -> None:
        maker = cast(Maker, _Names(full))
        super().__init__(maker, cast(Any, None), scorer, {}, {})
        self.plans = plans

    def plan(self, candidate: Candidate, proposal: int = 0, *, fresh: bool = True) -> Plan:
        return self.plans[_key(candidate, "recovery.steps")]


def _key(candidate: Candidate, *beside: str) -> str:
    """Of a student, by its settings but for number formats and others."""
    settings = dict(candidate.settings)
    return repr({n: v for n, v in settings.items() if n not in (*FORMAT_NAMES, *beside)})


def _plan(curve: Curve) -> Plan:
    return Plan("bert", Structure.of_sizes(curve.sizes))


class Replay:
    """One search.

    Args:
        sampler: of the space that is searched.
        seconds: for candidates.
        folder: empty; it holds a folder for each model that stands, as a run does.
    """

    def __init__(self, curves: Curves, sampler: Making, seconds: float, folder: Path) -> None:
        self.curves, self.space = curves, space_of(curves)
        self.clock = SimulatedClock(seconds)
        points = [{**curve.point, "recovery.steps": curves.steps} for curve in curves.students]
        keys = [_key(self.space.candidate(point), "recovery.steps") for point in points]
        self.by_key = dict(zip(keys, curves.students, strict=True)) | {"{}": curves.uncut}
        self.scorer = Scorer(
            _task(curves), {_DEVICE: cast(Any, None)}, {_DEVICE: Limits()}, folder / "t000"
        )
        self.scorer.baseline.mkdir()
        with (self.scorer.baseline / "model.onnx").open("wb") as file:
            file.truncate(curves.uncut.artifacts[0].weight_bytes)  # a file of zeros, for its size
        full = _plan(curves.uncut)
        plans = {key: _plan(curve) for key, curve in self.by_key.items()}
        self.pace = Pace(full.structure)
        self.allowance = Allowance(self.clock, self.pace, lambda: 0.0)
        self.right: dict[int, Right] = {}
        self.trials: list[Trial] = []
        uncut = Trial(0, {}, "asked", full.sizes(), student="{}")
        self.trials.append(self._looked_up(uncut, curves.uncut, ()))
        self.history = [(0.0, self._area())]
        request = Request(
            "",
            "text-classification",
            "",
            (HardwareProfile.load(_DEVICE),),
            self.space,
            folder,
            time_limit_s=seconds,
            sampler=Nearest(sampler(self.space), self.space, points),
        )
        foresight = _Recorded(plans, full, self.scorer)
        self.proposer = Proposer(request, foresight, self.allowance, self.trials)

    def search(self) -> Outcome:
        """From the first proposal to the end of the time."""
        if first := self.proposer.uncut_formats():
            self._carry_through(first)
        self.allowance.begin()
        while proposal := self.proposer.next():
            self._carry_through(proposal)
        members = [
            (trial.scores[_DEVICE].timing.speedup, trial.rungs[-1][1], self._on_test(trial))
            for trial in self._members()
            if trial.number
        ]
        artifacts = len(self.trials) - 1
        return Outcome(tuple(self.history), tuple(members), self._halved(), artifacts)

    def _carry_through(self, proposal: Proposal) -> None:
        """As ``Loop`` does: a training that does not end in time is left open."""
        curve = self.by_key[_key(proposal.candidate, "recovery.steps")]
        climber, trains = proposal.climber, proposal.by != "formats"
        before = climber.history if climber and climber.reached and trains else ()
        steps = int(proposal.candidate.number("recovery.steps", 0))
        fresh = steps - min(trunk_steps(before[-1][0] if before else 0), trunk_steps(steps))
        training_s = fresh * curve.step_s if trains else 0.0
        ended = [self._looked_up(trial, curve, before) for trial in proposal.trials]
        beside_s = sum(trial.seconds for trial in ended)
        if training_s + beside_s > self.allowance.left:
            lost_s = _LOST_STEPS * curve.step_s if trains else math.inf
            self.clock.now += min(lost_s, self.allowance.left)
            return
        self.clock.now += training_s + beside_s
        if trains:
            self.pace.learn(_plan(curve), curve.step_s)
        self.pace.learn_beside(beside_s / len(ended))
        proposal.trials = ended
        self.trials += ended
        self.proposer.ended(proposal)
        keep_models(
            self.scorer.models, {"t000", *(t.id for t in all_standing(self.trials, self.scorer))}
        )
        self.history.append((self.clock.now, self._area()))

    def _looked_up(
        self, trial: Trial, curve: Curve, before: tuple[tuple[int, float], ...]
    ) -> Trial:
        """The trial with all that was recorded of its artifact, and a folder in its name."""
        candidate = self.space.settings.candidate(trial.candidate)
        steps = int(candidate.number("recovery.steps", 0))
        artifact = curve.at(steps, dict(candidate.only(FORMAT_NAMES).settings))
        self.right[trial.number] = artifact.right
        (self.scorer.models / trial.id).mkdir(exist_ok=True)
        score = self._score(artifact)
        assert score.quality
        return replace(
            trial,
            state="complete",
            scores={_DEVICE: score},
            rungs=(*before, (steps, score.quality.drop_validation)),
            weight_bytes=artifact.weight_bytes,
            seconds=artifact.seconds,
            path=f"models/{trial.id}",
        )

    def _score(self, artifact: Artifact) -> Score:
        task, part = cast(TextClassification, self.scorer.task), self.scorer.task.validation
        count = len(part.rows)
        evidence, reference = (
            right[:count, None].astype(float) for right in (artifact.right, self.right[0])
        )
        value, stderr = task.score(evidence, part)
        lost = task.drop(reference, evidence, part)
        latency, low, high = artifact.latency_ms
        timing = Timing(
            Latency(latency, latency, latency, (low, high), 1),
            artifact.speedup[0],
            artifact.speedup[1:],
        )
        quality = Quality(value, *lost, validation_stderr=stderr)
        return Score(timing, quality, task.pack(evidence))

    def _members(self) -> list[Trial]:
        """Those that nothing dominates on the validation split, of those that stand."""
        there = all_standing(self.trials, self.scorer)
        points = [losses(trial, self.scorer.task.metric) for trial in there]
        return [there[i] for i in non_dominated(points)]

    def _on_test(self, trial: Trial) -> float:
        """Its drop, points."""
        count = len(self.scorer.task.validation.rows)
        reference, own = (self.right[number][count:] for number in (0, trial.number))
        return 100 * int(reference.sum() - own.sum()) / len(own)

    def _area(self) -> float:
        """The hypervolume of the members on the test split."""
        points = [
            (1 / trial.scores[_DEVICE].timing.speedup, self._on_test(trial))
            for trial in self._members()
        ]
        return hypervolume(points, self.scorer.task.metric.worst_drop)

    def _halved(self) -> float:
        """See ``Outcome``."""
        count, random = len(self.scorer.task.validation.rows), np.random.default_rng(0)
        right = np.array([self.right[trial.number][:count] for trial in self.trials])
        drops = 100.0 * (right[:1].astype(float) - right)
        latencies = [1 / trial.scores[_DEVICE].timing.speedup for trial in self.trials]
        flattered = []
        for _ in range(_HALVES):
            order = random.permutation(count)
            own, other = (drops[:, half].mean(1) for half in np.array_split(order, 2))
            chosen = non_dominated(list(zip(latencies, own.tolist(), strict=True)))
            members = [i for i in chosen if i]
            if members:
                flattered.append(float(np.mean(other[members] - own[members])))
        return float(np.mean(flattered)) if flattered else 0.0


def _task(curves: Curves) -> TextClassification:
    """Of right answers and wrong ones."""

    def part(count: int) -> Split:
        return Split([np.zeros((1, 1), np.int64)] * count, np.ones(count, np.int64))

    validation, test = part(curves.about["validation"]), part(curves.about["test"])
    nothing = cast(Any, None)
    return TextClassification(
        ("wrong", "right"), (), 0, part(0), validation, test, [], reading=nothing
    )


def replayed(curves: Curves, sampler: Making, seconds: float, *, on_ladder: bool = True) -> Outcome:
    """A search of so much simulated time."""
    with tempfile.TemporaryDirectory() as folder:
        if on_ladder:
            return Replay(curves, sampler, seconds, Path(folder)).search()
        with without_ladder():
            return Replay(curves, sampler, seconds, Path(folder)).search()

"""Metrics, dominance, fronts, hypervolume, picking. The only page that knows which direction is
better.

Inside, every objective is minimised: latency in milliseconds, and the drop against the baseline, in
the unit of its metric.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import RequestUnmet, UserError
from autocompress.scores import Latency, Quality, Timing

SCHEMA = 2
"""Of ``front.json``."""


@dataclass(frozen=True)
class Metric:
    """What the models of a task are scored by; a drop is how much worse a model is than the
    baseline.

    Args:
        name: of the score.
        lost: what a drop is for the score, in a word.
        unit: of drops.
        worst_drop: at which a model counts nothing in the hypervolume.
        largest_drop: that can be asked for; it stands for a model that was not scored.
        higher_is_better: whether a drop lowers the score.
        digits: of the score that are shown.
        examples: what is scored.
    """

    name: str
    lost: str
    unit: str
    worst_drop: float
    largest_drop: float
    higher_is_better: bool
    digits: int
    examples: str

    def text(self, score: float) -> str:
        """The score as it is printed."""
        return f"{score:.{self.digits}f}"

    def change(self, drop: float) -> float:
        """How the score changes with a drop, in its unit."""
        return 0 - drop if self.higher_is_better else drop

    @property
    def axis(self) -> str:
        """The title of an axis of changes."""
        better = "" if self.higher_is_better else " (lower is better)"
        return f"{self.name} against the baseline, {self.unit}{better}"

    def drop_text(self, drop: float) -> str:
        """Such as ``drop 1.25 points``."""
        return f"{self.lost} {drop:.2f} {self.unit}"


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        "drop",
        "points",
        5.0,
        100.0,
        higher_is_better=True,
        digits=4,
        examples="test examples",
    ),
    "perplexity": Metric(
        "perplexity",
        "increase",
        "percent",
        50.0,
        10_000.0,
        higher_is_better=False,
        digits=2,
        examples="windows of test text",
    ),
}
"""By name. Points are of a hundred, percent are of the baseline's score."""


def non_dominated(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other point dominates, all coordinates minimised; of equal
    points the first stays.

    Args:
        points: finite coordinates, all of the same length.
    """

    def dominates(i: int, j: int) -> bool:
        a, b = points[i], points[j]
        return all(x <= y for x, y in zip(a, b, strict=True)) and (a != b or i < j)

    return [
        j
        for j in range(len(points))
        if not any(dominates(i, j) for i in range(len(points)) if i != j)
    ]


def hypervolume(points: Sequence[tuple[float, float]], worst_drop: float) -> float:
    """Area that a front covers, in [0, 1].

    Args:
        points: (latency / baseline latency, drop against the baseline) per model. A point covers
            the rectangle up to x = 1 - relative latency and y = 1 - drop / worst_drop, both clipped
            to [0, 1].
        worst_drop: see ``Metric``.
    """
    corners = sorted(
        (
            (_clip(1 - relative), _clip((worst_drop - drop) / worst_drop))
            for relative, drop in points
        ),
        reverse=True,
    )
    area, height = 0.0, 0.0
    for x, y in corners:
        area += x * max(0.0, y - height)
        height = max(height, y)
    return area


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))


@dataclass(frozen=True)
class Member:
    """One model of a front; see README, "Reading the front"."""

    id: str
    candidate: dict[str, Any]
    quality: Quality
    timing: Timing
    weight_bytes: int
    path: str
    sizes: dict[str, Any]

    @property
    def latency_ms(self) -> Latency:
        return self.timing.latency_ms

    @property
    def speedup(self) -> float:
        return self.timing.speedup

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Member:
        return cls(
            **value
            | {"quality": Quality(**value["quality"]), "timing": Timing.from_json(value["timing"])}
        )


@dataclass(frozen=True)
class Budget:
    """What a model must meet; None is no limit.

    Args:
        max_latency_ms: latency at most, milliseconds.
        min_speedup: against the unquantized fp32 model in the same runtime.
        max_drop: lost against the baseline at most: points of accuracy, or percent that the
            perplexity increases by.
        min_quality: accuracy at least, as a share.
        max_perplexity: at most.

    Raises:
        UserError: a limit that no model or every model meets.
    """

    max_latency_ms: float | None = None
    min_speedup: float | None = None
    max_drop: float | None = None
    min_quality: float | None = None
    max_perplexity: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_latency_ms", "min_speedup"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} is {value:g}: it must be more than zero")
        if self.min_quality is not None and not 0 < self.min_quality <= 1:
            raise UserError(
                f"min_quality is {self.min_quality:g}: it is a share such as 0.86, more than 0 "
                f"and at most 1"
            )
        if self.max_perplexity is not None and not 1 < self.max_perplexity < float("inf"):
            raise UserError(f"max_perplexity is {self.max_perplexity:g}: it must be more than 1")

    def check(self, metric: Metric) -> None:
        """Raises:
        UserError: a drop that cannot be, or a limit of another metric.
        """
        if self.max_drop is not None and not 0 <= self.max_drop <= metric.largest_drop:
            raise UserError(
                f"max_drop is {self.max_drop:g}: it is in {metric.unit}, from 0 to "
                f"{metric.largest_drop:g}"
            )
        name, other, value = (
            ("max_perplexity", "min_quality", self.max_perplexity)
            if metric.higher_is_better
            else ("min_quality", "max_perplexity", self.min_quality)
        )
        if value is not None:
            raise UserError(
                f"{name} is set, but the models are scored by their {metric.name}; give {other} "
                f"or max_drop"
            )

    def as_dict(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def admits_speed(self, latency_ms: float, speedup: float) -> bool:
        """Whether the latency limits hold."""
        return (self.max_latency_ms is None or latency_ms <= self.max_latency_ms) and (
            self.min_speedup is None or speedup >= self.min_speedup
        )

    def violations(
        self, latency_ms: float, speedup: float, quality: float, drop: float
    ) -> dict[str, float]:
        """By how much each limit set is missed, as a share of the limit or of a hundred; zero or
        less when it holds."""
        found: dict[str, float] = {}
        if self.max_latency_ms is not None:
            found["latency"] = latency_ms / self.max_latency_ms - 1
        if self.min_speedup is not None:
            found["speedup"] = self.min_speedup / speedup - 1
        if self.max_drop is not None:
            found["drop"] = round(drop - self.max_drop, 9) / 100
        if self.min_quality is not None:
            found["quality"] = self.min_quality - quality
        if self.max_perplexity is not None:
            found["perplexity"] = quality / self.max_perplexity - 1
        return found

    def of(self, member: Member, *, certain: bool = False) -> dict[str, float]:
        """``violations`` of a member, on the numbers that are reported.

        Args:
            certain: on the slow ends of the intervals of latency and speedup.
        """
        latency = member.latency_ms.interval[1] if certain else member.latency_ms.value
        speedup = member.timing.speedup_interval[0] if certain else member.speedup
        return self.violations(
            latency, speedup, member.quality.reported, member.quality.drop_reported
        )

    def admits(self, member: Member, *, certain: bool = False) -> bool:
        """Whether a member meets every limit; arguments as in ``of``."""
        return all(miss <= 0 for miss in self.of(member, certain=certain).values())


@dataclass(frozen=True)
class Front:
    """The Pareto-optimal models of one search, sorted by latency; ``front.json`` as an object."""

    metric: str
    baseline: Member
    hardware: dict[str, Any]
    budget: dict[str, float]
    hypervolume: float
    members: tuple[Member, ...]
    verified: bool

    def pick(
        self,
        *,
        max_latency_ms: float | None = None,
        min_speedup: float | None = None,
        max_drop: float | None = None,
        min_quality: float | None = None,
        max_perplexity: float | None = None,
        allow_tie: bool = False,
    ) -> Member:
        """The best member within a latency limit; with quality limits only, the fastest that meets
        them.

        Quality limits are checked on the test score, the number that is reported. Limits as in
        ``Budget``.

        Args:
            allow_tie: also members whose interval of latency or speedup crosses the limit.

        Raises:
            UserError: no limit given, or one that makes no sense.
            RequestUnmet: no member meets the request.
        """
        budget = Budget(max_latency_ms, min_speedup, max_drop, min_quality, max_perplexity)
        budget.check(self.scale)
        if not budget.as_dict():
            raise UserError("give at least one limit: a latency, a speedup, a quality or a drop")

        def rank(member: Member) -> tuple[float, float]:
            ranks = member.latency_ms.value, member.quality.drop_reported
            return ranks if max_latency_ms is None and min_speedup is None else ranks[::-1]

        crossing = sorted((m for m in self.members if budget.admits(m)), key=rank)
        fitting = [m for m in crossing if allow_tie or budget.admits(m, certain=True)]
        if fitting:
            return fitting[0]
        if not self.members:
            raise RequestUnmet(
                "the front is empty: the search found no model within its own budget"
            )
        if crossing:
            found = crossing[0]
            value, (low, high), unit = found.speedup, found.timing.speedup_interval, "x"
            if max_latency_ms is not None:
                value, (low, high), unit = found.latency_ms.value, found.latency_ms.interval, " ms"
            raise RequestUnmet(
                f"{found.id} meets the request at {value:.3g}{unit}, but its interval ({low:.3g} "
                f"to {high:.3g}{unit}) crosses it; "
                "--allow-tie takes it"
            )
        raise RequestUnmet(
            f"no model of the front meets the request; {nearest(self.members, budget, self.scale)}"
        )

    @property
    def scale(self) -> Metric:
        """What the models are scored by."""
        return METRICS[self.metric]

    @property
    def estimated(self) -> bool:
        """Whether latencies are estimates from a datasheet."""
        return self.baseline.latency_ms.basis != "measured"

    @property
    def balanced(self) -> Member:
        """The member that alone covers the most hypervolume."""

        def alone(member: Member) -> float:
            return hypervolume(
                [(1 / member.speedup, member.quality.drop_reported)], self.scale.worst_drop
            )

        return max(self.members or (self.baseline,), key=alone)

    def member(self, id: str) -> Member:
        """The member of that id, the baseline included.

        Raises:
            UserError: the front has no such member.
        """
        found = {m.id: m for m in (self.baseline, *self.members)}
        if id not in found:
            raise UserError(f"trial {id!r} is not in the front; its models are {', '.join(found)}")
        return found[id]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Front:
        return cls(
            **value
            | {
                "metric": METRICS[value["metric"]].name,
                "baseline": Member.from_json(value["baseline"]),
                "members": tuple(Member.from_json(member) for member in value["members"]),
            }
        )


def load_fronts(run: str | Path) -> dict[str, Front]:
    """The fronts of a run folder by name of the hardware profile, in the order in which the search
    was given them.

    Raises:
        UserError: no readable ``front.json`` of a known schema there.
    """
    path = Path(run) / "front.json"
    if not path.is_file():
        raise UserError(
            f"{run} holds no front.json: give the folder of a search that has scored at least one "
            f"model"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise UserError(f"{path}: schema is {value['schema']!r}, this version reads {SCHEMA}")
        fronts = [Front.from_json(front) for front in value["fronts"]]
        if not fronts:
            raise ValueError("it holds no front")
        return {front.hardware["name"]: front for front in fronts}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error


def load_front(run: str | Path, hardware: str | None = None) -> Front:
    """The front of a run folder for one device; by default the first that the search was given.

    Raises:
        UserError: as ``load_fronts``, or the search knew no such device.
    """
    fronts = load_fronts(run)
    name = (
        next(iter(fronts))
        if hardware is None
        else Path(hardware).stem
        if hardware.endswith(".toml")
        else hardware
    )
    if name not in fronts:
        raise UserError(f"--hardware {hardware}: {run} has fronts for {', '.join(fronts)}")
    return fronts[name]


def nearest(members: Sequence[Member], budget: Budget, metric: Metric) -> str:
    """In words: which member misses the budget by least, and what limits it."""
    found = min(members, key=lambda m: sum(max(0.0, miss) for miss in budget.of(m).values()))
    limits = " and ".join(name for name, miss in budget.of(found).items() if miss > 0) or "memory"
    return (
        f"the nearest is {found.id}, limited by its {limits}: {found.timing}, "
        f"{metric.name} {metric.text(found.quality.reported)} "
        f"({metric.drop_text(found.quality.drop_reported)})"
    )


Difference = Callable[[Member, Member], tuple[float, float]]
"""Drop in validation quality from one member to another, and its paired standard error, in the unit
of the metric."""


def without_ties(members: Sequence[Member], difference: Difference) -> list[Member]:
    """Of members whose latency intervals overlap and whose validation quality differs by less than
    one standard error, the smaller file stays.

    Args:
        members: in any order; also those that another one dominates by a hair.

    Returns:
        The members that stay, sorted by latency.
    """
    kept: list[Member] = []
    for member in sorted(members, key=lambda m: (m.weight_bytes, m.latency_ms.value)):
        if not any(tied(member, other, difference) for other in kept):
            kept.append(member)
    return sorted(kept, key=lambda m: m.latency_ms.value)


def tied(a: Member, b: Member, difference: Difference) -> bool:
    """Whether the measurements cannot tell two members apart."""
    if (
        a.latency_ms.interval[0] > b.latency_ms.interval[1]
        or b.latency_ms.interval[0] > a.latency_ms.interval[1]
    ):
        return False
    lost, stderr = difference(a, b)
    return lost == 0 or abs(lost) < stderr

"""Objectives, dominance, fronts, hypervolume. The only page that knows which direction is better.

Inside, every objective is minimised: latency, bytes, and the drop against the baseline, in the unit
of its metric.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress import choosing, exporting, optimism, records, showing
from autocompress.errors import UserError
from autocompress.journal import Run, Trial
from autocompress.limits import CONFIDENCE, Facts, Limits
from autocompress.metrics import METRICS as METRICS
from autocompress.metrics import Metric as Metric
from autocompress.scores import Latency, Quality, Timing

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
"""Of ``front.json``."""
OBJECTIVES: tuple[str, ...] = ("latency", "quality", "size")
"""What a search can minimise: latency, the drop in quality, bytes."""
LATENCY_AND_QUALITY: tuple[str, ...] = ("latency", "quality")
"""What it minimises when nothing is said."""
SAME_SIZE = 1.01
"""Ratio of sizes that are not told apart where size is an objective: what a file's own bookkeeping
takes wins no place on a front."""


def checked_objectives(given: Any, where: str) -> tuple[str, ...]:
    """Objectives in the order of ``OBJECTIVES``.

    Args:
        given: their names.
        where: leads the message.

    Raises:
        UserError: an unknown name, one twice, no quality, or nothing beside it.
    """
    known = ", ".join(OBJECTIVES)
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{where} is {given!r}, it must be a list of names of {known}")
    for name in given:
        if name not in OBJECTIVES:
            raise UserError(f"{where} names {name!r}, known are {known}")
        if given.count(name) > 1:
            raise UserError(f"{where} names {name} twice")
    if "quality" not in given or len(given) < 2:
        raise UserError(
            f"{where} is {', '.join(given) or 'empty'}: quality is always one of them, beside "
            f"latency or size"
        )
    return tuple(name for name in OBJECTIVES if name in given)


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
        points: (latency / baseline latency, drop against the baseline) per model, or bytes in
            place of latency. A point covers the rectangle up to x = 1 - relative latency and
            y = 1 - drop / worst_drop, both clipped to [0, 1].
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
    """One model of a front; see ``docs/reference/run.md``.

    Args:
        embedding_bytes: of ``weight_bytes`` those of the word embedding, where it is known.
        load_ms: CPU time to load the file, once the search is done.
    """

    id: str
    candidate: dict[str, Any]
    quality: Quality
    timing: Timing
    weight_bytes: int
    path: str
    sizes: dict[str, Any]
    embedding_bytes: int | None = None
    load_ms: float | None = field(default=None, compare=False)

    @property
    def latency_ms(self) -> Latency:
        return self.timing.latency_ms

    @property
    def speedup(self) -> float:
        return self.timing.speedup

    @property
    def rest(self) -> str:
        """Megabytes without its word embedding; a front of before does not know them."""
        if self.embedding_bytes is None:
            return "-"
        return f"{(self.weight_bytes - self.embedding_bytes) / 1e6:.1f}"

    @property
    def mark(self) -> str:
        """Follows its description where another member beats it on the test split."""
        return f"; beaten on test by {self.quality.beaten_by}" if self.quality.beaten_by else ""

    def facts(self, baseline_bytes: int, rivals: int, *, certain: bool = False) -> Facts:
        """What limits are checked on: latencies as reported, quality on the validation split; test
        figures choose nothing, else they would flatter what is chosen.

        Args:
            baseline_bytes: of the baseline's file.
            rivals: models that one is chosen among, this one included.
            certain: the slow ends of the intervals of latency and speedup.
        """
        return Facts(
            self.latency_ms.interval[1] if certain else self.latency_ms.value,
            self.timing.speedup_interval[0] if certain else self.speedup,
            self.weight_bytes,
            baseline_bytes,
            self.timing.memory_bytes,
            self.quality.validation,
            self.quality.drop_validation,
            self.quality.validation_stderr or 0.0,
            self.quality.drop_validation_stderr,
            rivals,
            self.quality.constant,
        )

    @classmethod
    def of(cls, trial: Trial, device: str) -> Member:
        """A completed trial as one device scored it during the search."""
        score = trial.scores[device]
        assert score.quality and trial.sizes and trial.path
        return cls(
            trial.id,
            trial.candidate,
            score.quality,
            score.timing,
            trial.bytes_on(device) or 0,
            trial.path,
            trial.sizes,
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Member:
        return cls(
            **value
            | {"quality": Quality(**value["quality"]), "timing": Timing.from_json(value["timing"])}
        )


@dataclass(frozen=True)
class Front:
    """The Pareto-optimal models of one search, sorted by latency; ``front.json`` as an object.

    Args:
        hypervolume: of latency and validation quality.
        objectives: that no other model of the search is better in; of ``OBJECTIVES``.
        size_hypervolume: of size and validation quality; None where size is no objective.
        hypervolume_test: of latency and test quality; None until the front is verified.
        commonest: the score of always answering the commonest class, of the test split, or of the
            validation split until the front is verified; None where there are no classes.
        run: the folder that holds its models; no part of the file.
    """

    metric: str
    baseline: Member
    hardware: dict[str, Any]
    budget: dict[str, float]
    hypervolume: float
    members: tuple[Member, ...]
    verified: bool
    objectives: tuple[str, ...] = LATENCY_AND_QUALITY
    size_hypervolume: float | None = None
    hypervolume_test: float | None = None
    commonest: float | None = None
    run: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return showing.text(self)

    def _repr_html_(self) -> str:
        return showing.html(self)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each member, fastest first, and for the baseline: figures, then settings.

        Milliseconds; the score in a column of the metric's name, and drops in its unit, both of the
        test split once the front is verified; bytes.
        """
        return showing.frame(self)

    def pick(
        self,
        *,
        max_latency_ms: float | None = None,
        min_speedup: float | None = None,
        max_drop: float | None = None,
        min_quality: float | None = None,
        max_perplexity: float | None = None,
        max_bytes: float | None = None,
        min_compression: float | None = None,
        smallest: bool = False,
        allow_tie: bool = False,
        confidence: float = CONFIDENCE,
    ) -> Member:
        """``choose`` within these limits, see ``Limits``."""
        limits = Limits(
            max_latency_ms,
            min_speedup,
            max_drop,
            min_quality,
            max_perplexity,
            max_bytes,
            min_compression,
            confidence=confidence,
        )
        return self.choose(limits, smallest=smallest, allow_tie=allow_tie)

    def choose(self, limits: Limits, *, smallest: bool = False, allow_tie: bool = False) -> Member:
        """The best member within limits of latency or size; with quality limits only, the fastest
        that meets them.

        The validation split chooses, quality limits are checked on it with a margin, and the test
        score of what is chosen stays unbiased. Of several limits all must hold.

        Args:
            smallest: in place of the best or the fastest the smallest that meets them, or of all.
            allow_tie: also members whose interval of latency or speedup crosses the limit.

        Raises:
            UserError: no limit given, or one that makes no sense.
            RequestUnmet: no member meets the request.
        """
        return choosing.choose(self, limits, smallest=smallest, allow_tie=allow_tie)

    def export(self, model: Member | str, out: str | Path, *, with_weights: bool = False) -> None:
        """Write a model as a folder that opens in ONNX Runtime and Optimum, with a model card; see
        ``exporting``.

        Args:
            model: of this front, or the id of one, see ``member``.
            with_weights: also those of torch, for ``load_model``.

        Raises:
            UserError: no such model, its files are gone or damaged, or ``out`` exists or cannot be
                written.
        """
        member = self.member(model) if isinstance(model, str) else model
        exporting.export(self, member, Path(out), with_weights=with_weights)

    @property
    def hint(self) -> Limits | None:
        """A limit to choose by: met by a member that is within the worst drop that counts; None
        where there is no such member."""
        return choosing.hint(self)

    @property
    def too_few(self) -> str | None:
        """That the test split is too small to tell models apart, in words; None where it is not."""
        tested, scale = self.baseline.quality.n_test, self.scale
        if tested is None or tested >= scale.enough:
            return None
        return f"only {tested} {scale.examples}, too few to tell models apart"

    @property
    def optimism_points(self) -> tuple[float, float] | None:
        """By how much choosing on validation flatters the front: the mean over members of the drop
        on test less the drop on validation, in the unit of the metric, and its standard error; None
        where no member but the baseline was tested.

        Members answer the same examples, so their errors count as one and the same: the mean's is
        the mean of theirs, which is the most that it can be.
        """
        return optimism.points(self)

    @property
    def optimism(self) -> str | None:
        """``optimism_points`` in words."""
        return optimism.words(self)

    @property
    def notes(self) -> list[str]:
        """What a reader must know to judge the scores."""
        scale, few = self.scale, self.too_few
        alone = None if self.commonest is None else scale.text(self.commonest)
        return [
            *([f"the commonest class alone has {scale.name} {alone}"] if alone else []),
            *([few] if few else []),
            *([self.optimism] if self.optimism else []),
        ]

    def error_text(self, member: Member) -> str:
        """The standard error of a member's drop; unknown where too few examples show none."""
        stderr = member.quality.drop_stderr_reported
        unknown = self.too_few and stderr == 0 and member.id != self.baseline.id
        return "?" if unknown else f"{stderr:.2f}"

    @property
    def scale(self) -> Metric:
        """What the models are scored by."""
        return METRICS[self.metric]

    @property
    def estimated(self) -> bool:
        """Whether latencies are estimates from a datasheet."""
        return self.baseline.latency_ms.basis != "measured"

    @property
    def areas(self) -> str:
        """The hypervolumes in words, with the splits that they are of."""
        latency, size = " by latency", f" and {self.size_hypervolume or 0:.3f} by size"
        if self.size_hypervolume is None:
            latency = size = ""
        on_validation = f"{self.hypervolume:.3f}{latency}{size} on validation"
        if self.hypervolume_test is None:
            return on_validation
        return f"{on_validation}, {self.hypervolume_test:.3f}{latency} on test"

    def margin(self, member: Member, confidence: float = CONFIDENCE) -> float:
        """What a limit of the drop is held off by where ``member`` is picked, in its unit."""
        stderrs = Limits(confidence=confidence).stderrs(len(self.members))
        return stderrs * member.quality.drop_validation_stderr

    def compression(self, member: Member) -> float:
        """Bytes of the baseline over those of a member."""
        return self.baseline.weight_bytes / member.weight_bytes

    @property
    def balanced(self) -> Member:
        """The member that alone covers the most hypervolume, of size where latency is no
        objective."""
        return self.balanced_by("latency" if "latency" in self.objectives else "size")

    def balanced_by(self, objective: str) -> Member:
        """The member that alone covers the most hypervolume of validation quality and ``latency``
        or ``size``."""

        def alone(member: Member) -> float:
            gain = member.speedup if objective == "latency" else self.compression(member)
            return hypervolume([(1 / gain, member.quality.drop_validation)], self.scale.worst_drop)

        return max(self.members or (self.baseline,), key=alone)

    def member(self, id: str) -> Member:
        """The member of that id, the baseline included; else the completed trial of that id, as it
        was scored during the search, where the run keeps its files.

        Raises:
            UserError: there is no such model.
        """
        by_id = {m.id: m for m in (self.baseline, *self.members)}
        member = by_id.get(id) or self._tried(id)
        if member is None:
            raise UserError(f"trial {id!r} is not in the front; its models are {', '.join(by_id)}")
        return member

    def _tried(self, id: str) -> Member | None:
        """A completed trial of the run."""
        if self.run is None:
            return None
        for trial in Run(self.run).trials():
            score = trial.scores.get(self.hardware["name"])
            if trial.id == id and trial.state == "complete" and score and score.quality:
                if not (self.run / str(trial.path)).is_dir():
                    raise UserError(
                        f"trial {id!r} is not in the front, and {self.run} no longer holds its "
                        f"files: search --keep all keeps them"
                    )
                return Member.of(trial, self.hardware["name"])
        return None

    def as_dict(self) -> dict[str, Any]:
        """As in ``front.json``."""
        return {name: value for name, value in asdict(self).items() if name != "run"}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Front:
        return cls(
            **value
            | {
                "metric": METRICS[value["metric"]].name,
                "baseline": Member.from_json(value["baseline"]),
                "members": tuple(Member.from_json(member) for member in value["members"]),
                "objectives": tuple(value.get("objectives", LATENCY_AND_QUALITY)),
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
        for front in fronts:
            records.check(front)
        return {front.hardware["name"]: replace(front, run=Path(run)) for front in fronts}
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


def point(
    member: Member, objectives: Collection[str], *, together: bool = False
) -> tuple[float, ...]:
    """What dominance compares of a member, on the validation split; all to be minimised.

    Args:
        together: whether the members were timed in one session, so that milliseconds compare; else
            latency is relative to the baseline of the member's own session.
    """
    latency = member.latency_ms.value if together else 1 / member.speedup
    size = round(math.log(member.weight_bytes, SAME_SIZE))
    coordinates = {"latency": latency, "quality": member.quality.drop_validation, "size": size}
    return tuple(coordinates[name] for name in objectives)


Difference = Callable[[Member, Member], tuple[float, float]]
"""Drop in validation quality from one member to another, and its paired standard error, in the unit
of the metric."""


def without_ties(
    members: Sequence[Member],
    difference: Difference,
    objectives: Collection[str] = LATENCY_AND_QUALITY,
) -> list[Member]:
    """Of members whose latency intervals overlap and whose validation quality differs by less than
    one standard error, the smaller file stays.

    Args:
        members: in any order; also those that another one dominates by a hair.
        objectives: where latency is none of them, it tells no members apart.

    Returns:
        The members that stay, sorted by latency.
    """
    kept: list[Member] = []
    for member in sorted(members, key=lambda m: (m.weight_bytes, m.latency_ms.value)):
        if not any(tied(member, other, difference, objectives) for other in kept):
            kept.append(member)
    return sorted(kept, key=lambda m: m.latency_ms.value)


def tied(
    a: Member,
    b: Member,
    difference: Difference,
    objectives: Collection[str] = LATENCY_AND_QUALITY,
) -> bool:
    """Whether the measurements cannot tell two members apart; sizes are known, not measured."""
    if "latency" in objectives and (
        a.latency_ms.interval[0] > b.latency_ms.interval[1]
        or b.latency_ms.interval[0] > a.latency_ms.interval[1]
    ):
        return False
    lost, stderr = difference(a, b)
    return lost == 0 or abs(lost) < stderr

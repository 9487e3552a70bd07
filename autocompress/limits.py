"""What a model must meet, and by how much it misses it. The only page that knows when a limit
holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import NormalDist

from autocompress.errors import UserError
from autocompress.metrics import Metric
from autocompress.scores import CONSTANT

CONFIDENCE = 0.9
"""That the model chosen by a limit of quality truly meets it, when nothing is said."""
QUALITY = ("drop", "quality", "perplexity")
"""Of ``Limits.misses``."""
_MORE_THAN_ZERO = ("max_latency_ms", "min_speedup", "max_bytes", "min_compression", "max_memory_mb")


@dataclass(frozen=True)
class Facts:
    """What is known of one model; None is unknown, and no limit is checked by it.

    Args:
        latency_ms: milliseconds.
        speedup: against the baseline.
        weight_bytes: of the file.
        baseline_bytes: of the baseline's file.
        memory_bytes: peak that the model adds to its process.
        quality: by the metric of the task.
        drop: of the quality against the baseline, in the unit of the metric.
        quality_stderr, drop_stderr: of the two.
        rivals: models that one is chosen among, this one included.
        constant: whether all answers are alike; no limit makes up for that.
    """

    latency_ms: float | None = None
    speedup: float | None = None
    weight_bytes: int | None = None
    baseline_bytes: int | None = None
    memory_bytes: int | None = None
    quality: float | None = None
    drop: float | None = None
    quality_stderr: float = 0.0
    drop_stderr: float = 0.0
    rivals: int = 1
    constant: bool = False

    @property
    def compression(self) -> float | None:
        """Bytes of the baseline over those of the model."""
        if self.weight_bytes is None or self.baseline_bytes is None:
            return None
        return self.baseline_bytes / self.weight_bytes


@dataclass(frozen=True)
class Limits:
    """What a model must meet; None is no limit.

    Args:
        max_latency_ms: latency at most, milliseconds.
        min_speedup: against the unquantized fp32 model in the same runtime.
        max_drop: lost against the baseline at most: points of a hundred, or percent that the
            perplexity increases by.
        min_quality: score at least, as a share.
        max_perplexity: at most.
        max_bytes: size of the file at most.
        min_compression: bytes of the unquantized fp32 model's file over those of the model's.
        max_memory_mb: peak that the model adds to its process at most, megabytes; a search holds
            to the one of the hardware profile, too.
        confidence: that a model chosen by a limit of quality truly meets it; the limit is checked
            on its figure and a margin, see ``stderrs``.

    Raises:
        UserError: a limit that no model or every model meets.
    """

    max_latency_ms: float | None = None
    min_speedup: float | None = None
    max_drop: float | None = None
    min_quality: float | None = None
    max_perplexity: float | None = None
    max_bytes: float | None = None
    min_compression: float | None = None
    max_memory_mb: float | None = None
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        for name in _MORE_THAN_ZERO:
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
        if not 0.5 <= self.confidence < 1:
            raise UserError(
                f"confidence is {self.confidence:g}: it must be from 0.5, which asks for no "
                f"margin, to less than 1"
            )

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
        """The limits that are set, and with those of quality their confidence."""
        unused = () if self.of_quality else ("confidence",)
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in unused and value is not None
        }

    def on(self, memory_limit_mb: float | None) -> Limits:
        """With the limit of a device's memory, megabytes; of two the tighter one."""
        both = (self.max_memory_mb, memory_limit_mb)
        limit = min((mb for mb in both if mb is not None), default=None)
        return replace(self, max_memory_mb=limit)

    @property
    def of_speed(self) -> bool:
        """Whether latency is limited."""
        return self.max_latency_ms is not None or self.min_speedup is not None

    @property
    def of_size(self) -> bool:
        """Whether bytes are limited."""
        return self.max_bytes is not None or self.min_compression is not None

    @property
    def of_quality(self) -> bool:
        """Whether the quality is limited, or its drop."""
        return any(
            limit is not None for limit in (self.max_drop, self.min_quality, self.max_perplexity)
        )

    def stderrs(self, rivals: int) -> float:
        """How many standard errors a figure of quality must lie within its limit.

        The best-looking of several models owes some of its looks to luck: the interval of each is
        so wide that those of all rivals hold together (Sidak 1967, "Rectangular confidence regions
        for the means of multivariate normal distributions"). None at a confidence of 0.5.
        """
        together = 2 * self.confidence - 1
        return NormalDist().inv_cdf((1 + together ** (1 / rivals)) / 2)

    def misses(self, facts: Facts) -> dict[str, float]:
        """By how much each limit that is set is missed, as a share of the limit (of a hundred for
        drops and accuracies); zero or less when it holds. What is unknown is not among them."""
        bytes_at_most = self.max_memory_mb and 1e6 * self.max_memory_mb
        stderrs = self.stderrs(facts.rivals)
        lost = short = perplexity = None
        if self.max_drop is not None and facts.drop is not None:
            lost = round(facts.drop + stderrs * facts.drop_stderr - self.max_drop, 9) / 100
        if facts.quality is not None:
            margin = stderrs * facts.quality_stderr
            perplexity = facts.quality + margin
            if self.min_quality is not None:
                short = self.min_quality - (facts.quality - margin)
        misses = {
            "latency": _beyond(facts.latency_ms, self.max_latency_ms),
            "speedup": _beyond(self.min_speedup, facts.speedup),
            "drop": lost,
            "quality": short,
            "perplexity": _beyond(perplexity, self.max_perplexity),
            "size": _beyond(facts.weight_bytes, self.max_bytes),
            "compression": _beyond(self.min_compression, facts.compression),
            "memory": _beyond(facts.memory_bytes, bytes_at_most),
            CONSTANT: 1.0 if facts.constant else None,
        }
        return {name: miss for name, miss in misses.items() if miss is not None}

    def violation(self, facts: Facts) -> float:
        """Sum of what is missed; zero when every limit holds."""
        return sum(max(0.0, miss) for miss in self.misses(facts).values())

    def missed(self, facts: Facts) -> list[str]:
        """The limits that do not hold, such as ``["latency", "size"]``."""
        return [name for name, miss in self.misses(facts).items() if not miss <= 0]

    def admits(self, facts: Facts) -> bool:
        """Whether every limit holds."""
        return not self.missed(facts)


def _beyond(value: float | None, limit: float | None) -> float | None:
    return None if value is None or limit is None else value / limit - 1

"""What is measured of a model: latencies under a profile, quality on the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONSTANT = "constant answers"
"""What is wrong with a model that answers everything alike, in words."""


@dataclass(frozen=True)
class Latency:
    """Time of one inference.

    Args:
        value: milliseconds; the profile's statistic over all rounds.
        p90: milliseconds.
        slowest: milliseconds.
        interval: confidence interval of ``value``, milliseconds; of an estimate the value itself.
        n: rounds timed; 0 for an estimate.
        statistic: median, mean or p10.
        confidence: of the interval.
        basis: ``measured``, or ``datasheet`` for an estimate from published peaks.
    """

    value: float
    p90: float
    slowest: float
    interval: tuple[float, float]
    n: int
    statistic: str = "p10"
    confidence: float = 0.95
    basis: str = "measured"

    @property
    def about(self) -> str:
        """A tilde before figures that are estimates."""
        return "" if self.basis == "measured" else "~"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Latency:
        return cls(**value | {"interval": _pair(value["interval"])})


@dataclass(frozen=True)
class Timing:
    """One model timed in turn with the baseline.

    Args:
        latency_ms: of the model.
        speedup: latency of the baseline over that of the model.
        speedup_interval: at the same confidence.
        precision: number format that the device computed in.
        wall_ms: median of the rounds' wall time; None for an estimate.
        cpu_ms: median of the rounds' CPU time per thread; None where it says nothing of the
            latency, as on a GPU.
        disturbed: whether wall and CPU time differ by more than a tenth in sum: other work took the
            cores.
        memory_bytes: peak that loading and running the model adds to a fresh process; None where it
            was not asked for.
        energy_mj: millijoules per inference of the whole processor; None where the machine exposes
            none.
        phase: of a language model: prefill (a prompt), decode (one token) or end-to-end (a prompt
            and a text generated after it), which all of the above is of; the profile chooses it.
        others: the other two phases, where they were timed.
        regime: warm (inferences back to back) or cold (single ones after the caches were
            displaced), which all of the above is of; the profile chooses it.
        weight_bytes: of the weights as the device held them; None where it ran the file itself.
        beside: the same in the other regime, where it was timed.
        graph: digest of what was timed, see ``reading.graph_digest``; None where nobody asks.
        taken_from: id of the trial of the same graph that was timed in place of the model.
    """

    latency_ms: Latency
    speedup: float
    speedup_interval: tuple[float, float]
    precision: str = "fp32"
    wall_ms: float | None = None
    cpu_ms: float | None = None
    disturbed: bool = False
    memory_bytes: int | None = None
    energy_mj: float | None = None
    phase: str | None = None
    others: tuple[Timing, ...] = ()
    regime: str = "warm"
    weight_bytes: int | None = None
    beside: Timing | None = None
    graph: str | None = None
    taken_from: str | None = None

    def __str__(self) -> str:
        about, phase = self.latency_ms.about, f"{self.phase} " if self.phase else ""
        speedup = f"{about}{self.speedup:.2f}x{', estimated' if about else ''}"
        return f"{phase}{about}{self.latency_ms.value:.3g} ms ({speedup})"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Timing:
        return cls(
            **value
            | {
                "latency_ms": Latency.from_json(value["latency_ms"]),
                "speedup_interval": _pair(value["speedup_interval"]),
                "others": tuple(Timing.from_json(other) for other in value.get("others", ())),
                "beside": Timing.from_json(beside) if (beside := value.get("beside")) else None,
            }
        )


@dataclass(frozen=True)
class Quality:
    """Scores of one model by the metric of its task, such as an accuracy of 0.875, and drops
    against the baseline: points of a hundred of an accuracy, percent that a perplexity increases
    by.

    Standard errors of drops are paired: from the differences on the same examples; that of
    ``validation`` is its own, None in older files. Models are chosen by validation figures, so that
    the test figures of what is chosen are unbiased; these are None until the front is verified.
    ``n_test`` counts examples, windows of text where those are what is scored; ``bits_per_byte`` is
    a language model's, of the test split. ``constant``: every validation example gets the same
    answer, and such a model stands on no front. ``beaten_by``: the member of the front that is
    better on the test split by more than the paired error, and neither slower nor larger.
    """

    validation: float
    drop_validation: float
    drop_validation_stderr: float
    test: float | None = None
    test_stderr: float | None = None
    n_test: int | None = None
    drop_test: float | None = None
    drop_test_stderr: float | None = None
    bits_per_byte: float | None = None
    validation_stderr: float | None = None
    constant: bool = False
    beaten_by: str | None = None

    @property
    def reported(self) -> float:
        """The test score; the validation score of a front that is not verified yet."""
        return self.validation if self.test is None else self.test

    @property
    def drop_reported(self) -> float:
        return self.drop_validation if self.drop_test is None else self.drop_test

    @property
    def drop_stderr_reported(self) -> float:
        return (
            self.drop_validation_stderr if self.drop_test_stderr is None else self.drop_test_stderr
        )


@dataclass(frozen=True)
class Score:
    """One model on one device.

    Args:
        timing: in turn with the baseline.
        quality: of what the device answers; None when the model was not scored.
        evidence: of the validation examples, as the task packs it; for paired errors between
            trials.
    """

    timing: Timing
    quality: Quality | None = None
    evidence: str | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Score:
        quality = value["quality"] and Quality(**value["quality"])
        return cls(Timing.from_json(value["timing"]), quality, value["evidence"])


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)

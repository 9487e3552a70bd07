"""What the tests of whole searches share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autocompress.candidate import Value
from autocompress.engine.listener import Silent
from autocompress.journal import Trial
from autocompress.pareto import Member
from autocompress.scores import Latency, Score, Timing
from autocompress.search_space import SearchSpace

CPU = "cpu-1-thread"


SPACE: dict[str, Any] = {
    "layers": {"keep": [1.0, 0.5, 0.25]},
    "heads": {"keep": {"low": 0.0, "high": 1.0, "step": 0.25}},
    "ffn": {"keep": {"low": 0.0, "high": 1.0, "step": 0.25}, "importance": ["fisher", "magnitude"]},
    "recovery": {"steps": [0, 12]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
    "corners": [{"quantization": {"scheme": "int8-dynamic"}}],
}


def space(values: Mapping[str, Any] = SPACE) -> SearchSpace:
    return SearchSpace.from_mapping("test", values)


def scheme(model: Trial | Member) -> str:
    """The number format of a model."""
    return str(model.candidate.get("quantization.scheme", "fp32"))


class Scripted:
    """A sampler that asks for these in turn, over and over."""

    def __init__(self, *chosen: Mapping[str, Value]) -> None:
        self.chosen, self.told = chosen, dict[int, tuple[tuple[float, ...], float]]()
        self.learned: list[dict[str, Value]] = []
        self.asked = 0

    def ask(self) -> tuple[int, dict[str, Value]]:
        self.asked += 1
        return self.asked, dict(self.chosen[(self.asked - 1) % len(self.chosen)])

    def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
        self.told[handle] = tuple(losses), violation

    def learn(
        self, chosen: Mapping[str, Value], losses: Sequence[float], violation: float = 0.0
    ) -> None:
        self.learned.append(dict(chosen))


class StopAfter(Silent):
    """A listener that presses Ctrl-C after some trials."""

    def __init__(self, trials: int) -> None:
        self.left = trials

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def timed(**speedups: float) -> dict[str, Score]:
    """Scores of these speedups by device."""
    latency = Latency(1.0, 1.0, 1.0, (1.0, 1.0), 30)
    return {
        name: Score(Timing(latency, speedup, (speedup, speedup)))
        for name, speedup in speedups.items()
    }


def timeless(trials: tuple[Trial, ...] | list[Trial]) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in trials]

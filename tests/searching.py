"""What the tests of whole searches share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autocompress.journal import Trial
from autocompress.scores import Latency, Score, Timing
from autocompress.search_space import SearchSpace

CPU = "cpu-1-thread"


SPACE: dict[str, Any] = {
    "layers": {"keep": [1.0, 0.5, 0.25]},
    "heads": {"keep": {"low": 0.0, "high": 1.0, "step": 0.25}},
    "ffn": {"keep": {"low": 0.0, "high": 1.0, "step": 0.25}, "importance": ["fisher", "magnitude"]},
    "recovery": {"steps": [0, 40]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
    "corners": [{"quantization": {"scheme": "int8-dynamic"}}],
}


UNCUT = {"layers.keep": 1.0, "width.latency": 1.0, "heads.keep": 1.0, "ffn.keep": 1.0}


def space(values: Mapping[str, Any] = SPACE) -> SearchSpace:
    return SearchSpace.from_mapping("test", values)


class StopAfter:
    """A listener that presses Ctrl-C after some trials."""

    def __init__(self, trials: int) -> None:
        self.left = trials

    def stage(self, name: str, done: int = 0, of: int = 0) -> None: ...

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

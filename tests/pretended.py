"""Searches whose students are neither made nor scored: what they are is drawn by their names."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from autocompress.engine import loop
from autocompress.engine.attempt import Attempt
from autocompress.engine.making import Maker
from autocompress.engine.scoring import Scorer
from autocompress.engine.verification import Verified, provisional
from autocompress.engine.workshop import Made, Order, Workshop
from autocompress.journal import Trial
from autocompress.scores import Latency, Quality, Score, Timing


@contextmanager
def pretended(make: Callable[[Order], Made]) -> Iterator[None]:
    """Inside, searches on one device go without any student; their fronts are not verified.

    Args:
        make: what comes of an order in the process of the search.
    """
    nobody = SimpleNamespace(id="0" * 16)
    with ExitStack() as patched:
        for owner, name, other in (
            (Workshop, "_made", lambda self, order, started: make(order)),
            (Attempt, "convert_and_score", _scored),
            (Maker, "sealed", lambda *_: nobody),
            (loop, "verified", _as_it_is),
        ):
            patched.enter_context(patch.object(owner, name, other))
        yield


def _scored(attempt: Attempt, student: Any) -> None:
    [(device, before)] = attempt.baseline.scores.items()
    for trial in attempt.open:
        draw = random.Random(f"{trial.student} {trial.candidate}")
        speedup, drop = 1 + 3 * draw.random(), 5 * draw.random()
        latency = Latency(1 / speedup, 1, 1, (1 / speedup, 1 / speedup), 30)
        timing = Timing(latency, speedup, (speedup, speedup))
        score = Score(timing, Quality(0.8 - drop / 100, drop, 0.1), before.evidence)
        (attempt.scorer.models / trial.id).mkdir()
        attempt._end(
            trial,
            state="complete",
            weight_bytes=1,
            scores={device: score},
            rungs=(*attempt.history, (attempt.steps, drop)),
            path=f"models/{trial.id}",
        )


def _as_it_is(trials: Sequence[Trial], scorer: Scorer, progress: object) -> Verified:
    return Verified([provisional(trials, name, scorer) for name in scorer.devices])

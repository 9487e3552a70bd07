"""From rounds to latencies: statistics, intervals, and whether the machine was disturbed.

The speedup is the baseline's estimate over that of the model, timed in turn in the same processes,
and its interval is bootstrapped over processes and their rounds. A model that was precise before
the last process has its latency set by that speedup from what the baseline took in all of them, so
that the milliseconds of all models compare. On one CPU thread a round counts
the CPU time of the thread that calls, in which onnxruntime then computes, so other processes do not
count; otherwise wall time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.artifact import onnx_file
from autocompress.hardware.agent import estimate, paired, resampled
from autocompress.hardware.profile import HardwareProfile
from autocompress.scores import Latency, Timing

DISTURBED = 1.1
"""Wall over CPU time, in sum, above which other work took the cores."""
_LOADED = 3
"""Bytes that a loaded model takes at most, as a multiple of its file's."""


def grouped(models: Sequence[Path], baseline: Path, memory_bytes: int) -> list[list[Path]]:
    """Models in groups, in order, of which each fits half the memory together with the baseline;
    one empty group without models.

    A model that fits with no other is a group of its own.

    Args:
        memory_bytes: of the device; 0 where it does not say, which counts as enough.
    """
    room = (memory_bytes or float("inf")) / 2 / _LOADED - _file_bytes(baseline)
    groups: list[list[Path]] = [[]]
    left = room
    for model in models:
        left -= _file_bytes(model)
        if left < 0 and groups[-1]:
            groups.append([])
            left = room - _file_bytes(model)
        groups[-1].append(model)
    return groups


def _file_bytes(model: Path) -> int:
    return onnx_file(model).stat().st_size


def summarise(processes: Sequence[NDArray[np.float64]], profile: HardwareProfile) -> list[Timing]:
    """A timing per model.

    Args:
        processes: milliseconds, of shape (rounds, models) each, the baseline first; NaN for models
            that did not run.
    """
    baseline_ms = float(estimate(paired(processes, 0), profile.statistic)[0])
    return [
        _summary(paired(processes, model), baseline_ms, profile)
        for model in range(processes[0].shape[1])
    ]


def _summary(
    processes: Sequence[NDArray[np.float64]], baseline_ms: float, profile: HardwareProfile
) -> Timing:
    """Of the last model.

    Args:
        processes: those that it ran in, with the baseline first.
        baseline_ms: over all processes.
    """
    tails = [50 * (1 - profile.confidence), 50 * (1 + profile.confidence)]
    samples, values = (
        resampled(processes, profile.statistic, profile.confidence),
        estimate(processes, profile.statistic),
    )
    drift = baseline_ms / float(values[0])
    low, high = drift * np.percentile(samples[:, -1], tails)
    slow, fast = np.percentile(samples[:, 0] / samples[:, -1], tails)
    rounds = np.concatenate(list(processes))[:, -1]
    return Timing(
        Latency(
            drift * float(values[-1]),
            float(np.percentile(rounds, 90)),
            float(rounds.max()),
            (float(low), float(high)),
            len(rounds),
            profile.statistic,
            profile.confidence,
        ),
        float(values[0] / values[-1]),
        (float(slow), float(fast)),
    )


def in_phases(by_phase: Mapping[str, Sequence[Timing]]) -> list[Timing]:
    """One timing per language model: of the first phase, beside it those of the others.

    Args:
        by_phase: a timing per model, by phase.
    """
    named = [
        [replace(timing, phase=phase) for timing in of_models]
        for phase, of_models in by_phase.items()
    ]
    return [replace(first, others=tuple(others)) for first, *others in zip(*named, strict=True)]


def in_regimes(timings: Sequence[Timing], regime: str, in_other: Sequence[Timing]) -> list[Timing]:
    """One timing per model, beside it that of the other regime.

    Args:
        regime: the other one.
        in_other: a timing per model in it.
    """
    return [
        replace(timing, beside=replace(other, phase=timing.phase, regime=regime))
        for timing, other in zip(timings, in_other, strict=True)
    ]


def timings(
    answer: dict[str, Any], profile: HardwareProfile, precisions: Sequence[str]
) -> list[Timing]:
    """The agent's answer to a ``time`` request as one timing per model, the baseline first.

    Args:
        precisions: number format of each model.
    """
    by_cpu, on_cpu = answer["clock"] == "cpu", profile.runtime == "onnxruntime-cpu"
    processes = [np.array(rounds, float) for rounds in answer["cpu_ms" if by_cpu else "wall_ms"]]
    wall, cpu = (
        np.concatenate([np.array(rounds, float) for rounds in answer[key]])
        for key in ("wall_ms", "cpu_ms")
    )
    return [
        replace(
            timing,
            precision=precisions[i],
            wall_ms=float(np.nanmedian(wall[:, i])),
            regime=profile.regime,
            cpu_ms=float(np.nanmedian(cpu[:, i])) if on_cpu else None,
            disturbed=on_cpu and bool(np.nansum(wall[:, i]) > DISTURBED * np.nansum(cpu[:, i])),
            memory_bytes=answer["memory_bytes"][i],
            energy_mj=answer["energy_mj"][i],
        )
        for i, timing in enumerate(summarise(processes, profile))
    ]

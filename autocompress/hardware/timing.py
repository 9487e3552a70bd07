"""From rounds to latencies: statistics, intervals, and whether the machine was disturbed.

The speedup is the baseline's estimate over that of the model, timed in turn in the same processes,
and its interval is bootstrapped over processes and their rounds. On one CPU thread a round counts
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
from autocompress.hardware.agent import estimate, resampled
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
        processes: milliseconds, of shape (rounds, models) each, the baseline first.
    """
    tails = [50 * (1 - profile.confidence), 50 * (1 + profile.confidence)]
    samples, values = (
        resampled(processes, profile.statistic, profile.confidence),
        estimate(processes, profile.statistic),
    )
    intervals = np.percentile(samples, tails, axis=0)
    ratios = np.percentile(samples[:, :1] / samples, tails, axis=0)
    rounds = np.concatenate(list(processes))
    return [
        Timing(
            Latency(
                float(values[i]),
                float(np.percentile(rounds[:, i], 90)),
                float(rounds[:, i].max()),
                (float(intervals[0, i]), float(intervals[1, i])),
                len(rounds),
                profile.statistic,
                profile.confidence,
            ),
            float(values[0] / values[i]),
            (float(ratios[0, i]), float(ratios[1, i])),
        )
        for i in range(rounds.shape[1])
    ]


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
    processes = [np.array(rounds) for rounds in answer["cpu_ms" if by_cpu else "wall_ms"]]
    wall, cpu = (
        np.concatenate([np.array(rounds) for rounds in answer[key]])
        for key in ("wall_ms", "cpu_ms")
    )
    return [
        replace(
            timing,
            precision=precisions[i],
            wall_ms=float(np.median(wall[:, i])),
            regime=profile.regime,
            cpu_ms=float(np.median(cpu[:, i])) if on_cpu else None,
            disturbed=on_cpu and bool(wall[:, i].sum() > DISTURBED * cpu[:, i].sum()),
            memory_bytes=answer["memory_bytes"][i],
            energy_mj=answer["energy_mj"][i],
        )
        for i, timing in enumerate(summarise(processes, profile))
    ]

"""Latency, timed in turn with the baseline.

All models of a session run round-robin, so that a slow spell of the machine hits all of them alike; each timed run follows 5 ms
of untimed ones of the same model, so that caches are as in service and not as the model before left them (a small int8 model
timed right after the fp32 one looked 40 % slower). The speedup is the median of the baseline's times over the median of the
model's, and its 95 % interval is bootstrapped over rounds.

On one thread a run's time is the CPU time of the calling thread, which onnxruntime then computes in: other processes on
the machine do not count. On several threads it is wall time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import CandidateFailed, UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Timing
from autocompress.onnx_runtime import Model
from autocompress.pareto import Latency

MIN_ROUNDS = 30
_WARM_UP_ROUNDS = 5
_WARM_SECONDS = 0.005
_RESAMPLES = 400


class OnnxRuntimeTimer:
    """A ``Timer`` for ONNX files on this machine's CPU; always in a fresh process, since one that trains runs them a fifth
    slower."""

    def __init__(self, profile: HardwareProfile) -> None:
        self.profile = profile

    def __call__(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Latency, list[Timing]]:
        seconds = (self.profile.final_seconds if final else self.profile.trial_seconds) * max(1, len(models))
        request = {"profile": self.profile.as_dict(), "paths": [str(path) for path in (baseline, *models)], "seconds": seconds}
        command = [sys.executable, "-m", "autocompress.hardware.timing"]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
        if done.returncode != 0:
            kind, _, message = done.stderr.strip().rpartition("\n")[2].partition(": ")
            raise (UserError if kind.endswith("UserError") else CandidateFailed)(message or f"timing ended with {done.returncode}")
        return summarise(np.array(json.loads(done.stdout)))


def time_rounds(paths: Sequence[Path], profile: HardwareProfile, seconds: float) -> NDArray[np.float64]:
    """Milliseconds of each run, shape (rounds, models); the first model is the baseline.

    Runs at least 30 rounds, then until every speedup (the latency of a model alone) is as precise as the profile wants, or
    the time is up.
    """
    threads = profile.intra_op_threads
    clock: Callable[[], int] = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    runs = [_prepared(Model(path, threads), profile) for path in paths]
    for _ in range(_WARM_UP_ROUNDS):
        for run in runs:
            run()
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while True:
        times = []
        for run in runs:
            warm = time.perf_counter() + _WARM_SECONDS
            while True:
                run()
                if time.perf_counter() > warm:
                    break
            start = clock()
            run()
            times.append((clock() - start) / 1e6)
        rounds.append(times)
        if len(rounds) >= MIN_ROUNDS and len(rounds) % MIN_ROUNDS == 0:
            found = np.array(rounds)
            if time.perf_counter() > end or _precise(found, profile.target_precision):
                return found


def _prepared(model: Model, profile: HardwareProfile) -> Callable[[], object]:
    shape = (profile.batch_size, profile.sequence_length)
    inputs = {name: np.ones(shape, np.int64) for name in model.input_names}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"][:] = 0
    inputs["input_ids"] = np.random.default_rng(0).integers(2, 20, shape)
    return lambda: model(inputs)


def _precise(rounds: NDArray[np.float64], target: float) -> bool:
    alone, timings = summarise(rounds)
    found = [(timing.speedup, timing.speedup_ci95) for timing in timings] or [(alone.median, alone.ci95)]
    return all((high - low) / 2 <= target * middle for middle, (low, high) in found)


def summarise(rounds: NDArray[np.float64]) -> tuple[Latency, list[Timing]]:
    """The baseline's latency and each model's timing.

    Args:
        rounds: milliseconds, shape (rounds, models), the baseline first.
    """
    count = len(rounds)
    picks = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    medians = np.median(rounds[picks], axis=1)
    intervals = np.percentile(medians, [2.5, 97.5], axis=0)
    ratio_intervals = np.percentile(medians[:, :1] / medians, [2.5, 97.5], axis=0)
    middle, p90 = np.median(rounds, axis=0), np.percentile(rounds, 90, axis=0)
    latencies = [
        Latency(float(middle[i]), float(p90[i]), (float(intervals[0, i]), float(intervals[1, i])), count)
        for i in range(rounds.shape[1])
    ]
    timings = [
        Timing(latencies[i], float(middle[0] / middle[i]), (float(ratio_intervals[0, i]), float(ratio_intervals[1, i])))
        for i in range(1, rounds.shape[1])
    ]
    return latencies[0], timings


def _serve() -> None:
    request = json.loads(sys.stdin.read())
    profile = HardwareProfile(**request["profile"])
    paths = [Path(path) for path in request["paths"]]
    rounds = time_rounds(paths, profile, request["seconds"])
    sys.stdout.write(json.dumps(rounds.tolist()))


if __name__ == "__main__":
    _serve()

"""What a device is and how well it can be timed: for ``autocompress doctor`` and ``autocompress
profile new``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.candidate import Settings
from autocompress.errors import CandidateFailed
from autocompress.formats import FORMAT_SETTINGS, FORMATS, convert
from autocompress.graphs import reading as onnx_graphs
from autocompress.hardware.host import Host, ask
from autocompress.hardware.onnx_device import described
from autocompress.hardware.profile import HardwareProfile
from autocompress.hardware.timing import timings

GAIN = 1.05
"""Speedup from which a number format counts as sped up."""
STEADY = 0.015
"""Standard deviation of the speedup of a model against its twin up to which a machine times well,
as a share."""
_TWINS, _FEWEST_TWINS = 6, 2
_SECONDS = 60.0
"""After which nothing more is begun."""
_TOKENS = 32
_INT8_FEATURES = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Args:
        device: see ``agent.describe``.
        gains: speedup of each number format over fp32, on products of 512 by 2048 with 32 tokens,
            one thread.
        spread: standard deviation of the speedup of a model against its twin over six timings, or
            fewer where there was no time, as a share.
        remarks: (whether it is in order, what is said) in words.
    """

    device: dict[str, Any]
    gains: dict[str, float]
    spread: float
    remarks: tuple[tuple[bool, str], ...]

    @property
    def times_well(self) -> bool:
        return all(fine for fine, _ in self.remarks)


def examine(
    host: Host,
    runtime: str = "onnxruntime-cpu",
    told: Callable[[str], None] = lambda what: None,
) -> Diagnosis:
    """Describe the device and time the probe on it; some 30 seconds, not much more than a minute
    where the machine is busy: formats and twins whose turn has not come by then are left out.

    Args:
        told: hears what is timed next.

    Raises:
        CandidateFailed: the device cannot run the probe.
        DeviceLost: it does not answer.
    """
    end = time.monotonic() + _SECONDS
    device = described(host)
    format_gains = gains(host, runtime, told, end)
    speedups: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "probe.onnx"
        onnx_graphs.write_probe(model)
        while len(speedups) < (_TWINS if time.monotonic() < end else _FEWEST_TWINS):
            told(f"timing a model against its twin, {len(speedups) + 1} of {_TWINS}")
            speedups.append(_time(host, runtime, {"fp32": model, "twin": model}, 2.0)["twin"])
    spread = float(np.std(speedups, ddof=1))
    return Diagnosis(device, format_gains, spread, tuple(_remarks(device, format_gains, spread)))


def gains(
    host: Host,
    runtime: str,
    told: Callable[[str], None] = lambda what: None,
    end: float = float("inf"),
) -> dict[str, float]:
    """Speedup of each number format over fp32; formats that the device cannot run are left out;
    raises as ``examine``.

    Args:
        told: hears what is timed next.
        end: as ``time.monotonic`` counts; formats whose turn has not come are left out.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fp32 = folder / "fp32.onnx"
        onnx_graphs.write_probe(fp32)
        calibration = [{"input_ids": np.random.default_rng(0).integers(2, 20, (4, _TOKENS))}]
        speedups = {"fp32": 1.0}
        for scheme in [name for name, known in FORMATS.items() if known.stored != "fp32"]:
            if time.monotonic() >= end:
                break
            told(f"timing {scheme}")
            path = folder / f"{scheme}.onnx"
            chosen = {"quantization.scheme": scheme, "quantization.block_size": 128}
            convert(fp32, path, Settings(FORMAT_SETTINGS).candidate(chosen), calibration)
            try:
                speedups |= _time(host, runtime, {"fp32": fp32, scheme: path}, 1.0)
            except CandidateFailed as error:
                if "onnxruntime cannot" not in str(error):
                    raise
    return speedups


def _time(host: Host, runtime: str, models: Mapping[str, Path], seconds: float) -> dict[str, float]:
    """Speedup of each model over the first."""
    profile = HardwareProfile("probe", "", "edge", runtime, 1, _TOKENS)
    request = {
        "action": "time",
        "runtime": runtime,
        "threads": 1,
        "batch_size": 1,
        "lengths": [_TOKENS],
        "statistic": profile.statistic,
        "confidence": profile.confidence,
        "target_precision": 0.005,
        "seconds": seconds,
        "memory": [False] * len(models),
    }
    timed = timings(ask(host, request, list(models.values())), profile, list(models))
    return {name: timing.speedup for name, timing in list(zip(models, timed, strict=True))[1:]}


def _remarks(
    device: Mapping[str, Any], format_gains: Mapping[str, float], spread: float
) -> list[tuple[bool, str]]:
    busy, cores, governor = device["busy_cores"], device["cores"], device["governor"]
    int8 = [feature for feature in _INT8_FEATURES if feature in device["features"]]
    best = max(format_gains, key=lambda name: format_gains[name])
    return [
        (
            (busy or 0) <= 0.1 * cores,
            "the device does not say how busy it is"
            if busy is None
            else f"other processes keep {busy:.2f} of {cores} cores busy",
        ),
        (
            governor in ("performance", "not exposed"),
            f"frequency governor: {governor}"
            + (
                ""
                if governor in ("performance", "not exposed")
                else "; clock speed follows the load, set it to performance"
            ),
        ),
        (
            True,
            f"{device['threads_per_core']} hardware "
            f"thread{'s' if device['threads_per_core'] > 1 else ''} per core"
            + (
                "; a timing shares its core with whatever runs on the other"
                if device["threads_per_core"] > 1
                else ""
            ),
        ),
        (
            True,
            f"int8 instructions: {', '.join(int8)}"
            if int8
            else "no int8 instructions (VNNI, AMX, dot product): int8 gains little",
        ),
        (
            True,
            f"fastest number format: {best}, "
            + ", ".join(f"{name} {gain:.2f}x" for name, gain in format_gains.items()),
        ),
        (
            spread <= STEADY,
            f"a model against its twin: speedup repeats within {100 * spread:.1f} % (standard "
            f"deviation)",
        ),
    ]

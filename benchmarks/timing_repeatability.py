"""How well a speedup repeats: the same pair of models timed 20 times, as the models of a front are,
quiet and disturbed.

The pair is the demo's encoder in fp32 and itself in int8 with half the heads and FFN neurons. Takes
some five minutes. The last thing printed is one JSON document:

    cv_quiet, cv_disturbed      coefficient of variation of the speedup, with nothing else running
    and with one core loaded by
                                another process that multiplies matrices
    cv_cold                     of the speedup after the caches were displaced, quiet, where the
                                device can be timed so
    latency_cv_quiet, latency_cv_disturbed
                                of the milliseconds of the small model
    coverage_quiet, coverage_disturbed
                                share of the timings whose interval holds the mean of all of them
    disturbance_reported        timings, of those disturbed, that said themselves that they were
    speedups_quiet, speedups_disturbed
                                each of them
    busy_cores                  kept busy by other processes before the quiet half began
    device                      what it ran on
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from autocompress import demo
from autocompress.families import family_of
from autocompress.graphs.runtime import quantize_dynamic_int8
from autocompress.hardware.agent import busy_cores, describe
from autocompress.hardware.devices import connect
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Device
from autocompress.scores import Timing
from autocompress.structure import Layer, Structure
from autocompress.training.teacher import load_classifier

LOAD = "import numpy as np\na = np.random.rand(512, 512).astype('f')\nwhile True: a @ a"


def pair(folder: Path) -> tuple[Path, Path]:
    """The encoder in fp32, and itself in int8 at half the width, as ONNX files."""
    from autocompress.graphs.export import to_onnx
    from autocompress.interfaces import Batch

    model = load_classifier(str(demo.model_folder()), ("negative", "positive"))
    family = family_of("bert")
    full = family.structure(model)
    half = Structure(tuple(Layer(l.source, l.heads[::2], l.ffn[::2]) for l in full.layers))
    ones = np.ones((2, 8), np.int64)
    example = Batch({"input_ids": ones, "token_type_ids": 0 * ones, "attention_mask": ones})
    baseline, aside, small = (folder / f"{name}.onnx" for name in ("baseline", "aside", "small"))
    to_onnx(model, baseline, example)
    to_onnx(family.cut(model, half), aside, example)
    quantize_dynamic_int8(aside, small)
    return baseline, small


def repeated(device: Device, baseline: Path, small: Path, repetitions: int) -> list[Timing]:
    return [device.time(baseline, [small], final=True)[1][0] for _ in range(repetitions)]


def cv(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--hardware", default="cpu-1-thread")
    options = parser.parse_args()
    profile = HardwareProfile.load(options.hardware)
    device = connect(profile, [32])
    result: dict[str, Any] = {
        "hardware": profile.name,
        "repetitions": options.repetitions,
        "busy_cores": busy_cores(2.0),
    }
    with tempfile.TemporaryDirectory() as scratch:
        models = pair(Path(scratch))
        quiet = repeated(device, *models, options.repetitions)
        load = subprocess.Popen(
            [sys.executable, "-c", LOAD], env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        )
        try:
            disturbed = repeated(device, *models, options.repetitions)
        finally:
            load.kill()
    for name, timings in (("quiet", quiet), ("disturbed", disturbed)):
        result[f"cv_{name}"] = cv([timing.speedup for timing in timings])
        mean = float(np.mean([timing.speedup for timing in timings]))
        held = [
            low <= mean <= high for low, high in (timing.speedup_interval for timing in timings)
        ]
        result[f"coverage_{name}"] = sum(held) / len(held)
        result[f"latency_cv_{name}"] = cv([timing.latency_ms.value for timing in timings])
        result[f"speedups_{name}"] = [round(timing.speedup, 4) for timing in timings]
    if cold := [timing.beside.speedup for timing in quiet if timing.beside]:
        result["cv_cold"] = cv(cold)
    result["disturbance_reported"] = sum(timing.disturbed for timing in disturbed)
    result["device"] = describe()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

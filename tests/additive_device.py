"""A device whose latency is an exact sum over what was exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress import HardwareProfile
from autocompress.artifact import facts, onnx_file
from autocompress.graphs.runtime import predict
from autocompress.latency.predictor import Shape
from autocompress.scores import Latency, Timing
from autocompress.techniques import SETTINGS

COSTS = {
    "fp32": (2.0, 0.5, 0.25, 1.0, 0.125, 0.03125),
    "int8-dynamic": (1.0, 0.25, 0.125, 0.5, 0.0625, 0.0078125),
    "int8-weights/32": (1.25, 0.375, 0.1875, 0.625, 0.09375, 0.01171875),
}
"""Milliseconds by number format: of what is in no layer, of a layer, of having heads, per head, of
having an FFN, per neuron."""
LAYERS, HEADS, FFN = 4, 4, 64
"""Of ``tiny_model``; fp32 takes 2 + 4 * (0.5 + 0.25 + 4 + 0.125 + 2) = 29.5 ms."""


def milliseconds(shape: Shape) -> float:
    total = COSTS[shape.rest][0]
    for heads, ffn, name in shape.layers:
        _, layer, any_heads, per_head, any_ffn, per_neuron = COSTS[name]
        total += (
            layer
            + any_heads * (heads > 0)
            + per_head * heads
            + any_ffn * (ffn > 0)
            + per_neuron * ffn
        )
    return total


def exported_shape(folder: Path) -> Shape:
    """What a model folder says of itself."""
    known = facts(folder)
    block = SETTINGS.candidate(known["candidate"]).get("quantization.block_size", 0)

    def named(scheme: str) -> str:
        return f"{scheme}/{block}" if scheme.endswith("-weights") else scheme

    sizes, formats = known["sizes"], [named(scheme) for scheme in known["quantization"]["layers"]]
    return Shape(
        tuple(zip(sizes["heads"], sizes["ffn"], formats, strict=True)),
        named(known["quantization"]["scheme"]),
    )


class AdditiveDevice:
    """Latency is the sum of ``COSTS`` over the exported folder, exactly; remembers what it was
    asked to time."""

    answers_like = "local onnxruntime-cpu"

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
        self.profile, self.lengths = profile, tuple(lengths)
        self.fingerprint: dict[str, Any] = {
            "cpu": "additive",
            "cores": 1,
            "features": [],
            "memory_bytes": 2**30,
            "busy_cores": 0.0,
        }
        self.memory_bytes = 10**6
        self.calls = 0
        self.table: list[Shape] = []
        self.trials: list[str] = []

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        self.calls += 1
        for path in models:
            if "models" in path.parts:
                self.trials.append(path.name)
            else:
                self.table.append(exported_shape(path))
        first = milliseconds(exported_shape(baseline))
        timings = [
            Timing(
                Latency(ms, ms, ms, (ms, ms), 30),
                first / ms,
                (first / ms, first / ms),
                memory_bytes=self.memory_bytes,
            )
            for ms in (milliseconds(exported_shape(path)) for path in (baseline, *models))
        ]
        return timings[0], timings[1:]

    def predict(
        self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        return predict(onnx_file(model), batches)

    def close(self) -> None: ...


class Connected:
    """Hands out a device and keeps it for inspection."""

    def __init__(self, kind: type[AdditiveDevice] = AdditiveDevice) -> None:
        self.kind, self.devices = kind, dict[str, AdditiveDevice]()

    def __call__(self, profile: HardwareProfile, lengths: Sequence[int]) -> AdditiveDevice:
        self.devices[profile.name] = self.kind(profile, lengths)
        return self.devices[profile.name]

    @property
    def device(self) -> AdditiveDevice:
        return next(iter(self.devices.values()))


FP32 = {
    "heads": {"keep": [1.0, 0.75, 0.5, 0.25], "allocation": "uniform"},
    "ffn": {"keep": [1.0, 0.5], "allocation": "uniform"},
}
PROFILE = HardwareProfile.load("cpu-1-thread")

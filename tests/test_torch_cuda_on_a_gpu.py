"""The torch-cuda device on the real thing, where one is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.artifact import load_model
from autocompress.errors import CandidateFailed
from autocompress.families import family_of
from autocompress.hardware.devices import connect
from autocompress.hardware.profile import HardwareProfile
from autocompress.hardware.torch_cuda import TorchCudaDevice
from autocompress.interfaces import Batch
from autocompress.structure import Structure
from autocompress.techniques import SETTINGS
from autocompress.training.compute import CPU
from autocompress.training.teacher import load_classifier
from tests.exporting import export_model

PROFILE = HardwareProfile.load("gpu-cuda")


class Exports:
    """Folders of a model, whole and cut, in several formats."""

    def __init__(self, source: Path, folder: Path) -> None:
        model, family = load_classifier(str(source), None), family_of("bert")
        full = family.structure(model)
        half = Structure(full.layers[::2])
        rng = np.random.default_rng(0)
        self.batches = []
        for length in (5, 23):
            ids = rng.integers(5, 500, (4, length))
            inputs = {
                "input_ids": ids,
                "token_type_ids": np.zeros_like(ids),
                "attention_mask": np.ones_like(ids),
            }
            self.batches.append(Batch(inputs))
        (folder / "tokenizer").mkdir()
        for name, structure, scheme in (
            ("baseline", full, "fp32"),
            ("half", half, "fp32"),
            ("bf16", full, "bf16"),
            ("fp16", half, "fp16"),
        ):
            candidate = SETTINGS.candidate({"quantization.scheme": scheme})
            cut = family.cut(model, structure)
            export_model(
                cut, structure, candidate, folder / name, self.batches[:1], folder / "tokenizer"
            )
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def exports(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tiny_model, tmp_path_factory.mktemp("gpu"))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def on_gpu(**change: Any) -> TorchCudaDevice:
    device = connect(replace(PROFILE, trial_seconds=0.5, final_seconds=0.5, **change), [8, 32])
    assert isinstance(device, TorchCudaDevice)
    return device


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_models_are_timed_on_the_gpu(exports: Exports, cuda_graphs: bool) -> None:
    names = ("half", "bf16", "fp16")
    baseline, timings = on_gpu(cuda_graphs=cuda_graphs).time(
        exports["baseline"], [exports[name] for name in names], final=False
    )
    assert [timing.precision for timing in (baseline, *timings)] == ["fp32", "fp32", "bf16", "fp16"]
    for timing in (baseline, *timings):
        assert 0 < timing.latency_ms.value < 100 and timing.latency_ms.n >= 30
        assert timing.speedup_interval[0] <= timing.speedup <= timing.speedup_interval[1]
        assert timing.memory_bytes is not None and 30522 * 32 * 2 < timing.memory_bytes < 1e9
        assert timing.cpu_ms is None
    half, bf16, _ = timings
    assert half.speedup > 1.2  # two layers instead of four
    assert baseline.memory_bytes is not None and bf16.memory_bytes is not None
    assert bf16.memory_bytes < 0.8 * baseline.memory_bytes


@pytest.mark.gpu
@needs_gpu
def test_a_captured_graph_is_faster_than_eager_calls(exports: Exports) -> None:
    eager, graph = (
        on_gpu(cuda_graphs=graphs).time(exports["baseline"], [], final=True)[0]
        for graphs in (False, True)
    )
    assert graph.latency_ms.value < 0.7 * eager.latency_ms.value


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("name", "tolerance"), [("baseline", 1e-4), ("half", 1e-4), ("bf16", 0.05), ("fp16", 0.01)]
)
def test_the_gpu_answers_as_torch_does(exports: Exports, name: str, tolerance: float) -> None:
    outputs = on_gpu().predict(exports[name], [dict(batch.inputs) for batch in exports.batches])
    model: Any = load_model(exports[name])
    with torch.inference_mode():
        expected = np.concatenate(
            [model(**CPU.tensors(batch)).logits.numpy() for batch in exports.batches]
        )
    assert outputs.shape == (8, 2) and outputs.dtype == np.float32
    assert np.abs(outputs - expected).max() < tolerance


@pytest.mark.gpu
@needs_gpu
def test_a_sequence_that_is_too_long_fails_the_candidate(exports: Exports) -> None:
    device = connect(replace(PROFILE, trial_seconds=0.5), [65])  # the tiny model has 64 positions
    with pytest.raises(CandidateFailed, match="torch-cuda"):
        device.time(exports["baseline"], [], final=False)

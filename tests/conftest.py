"""Shared: real sentences, a tiny model on disk, a device that does not depend on the machine."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from autocompress import demo
from autocompress.artifact import onnx_file, scheme_of
from autocompress.hardware.profile import HardwareProfile
from autocompress.onnx_runtime import predict
from autocompress.scores import Latency, Timing

torch.set_num_threads(1)


class SizeDevice:
    """Latency is proportional to the size of the ONNX file: 1 ms per 100 kB, times the pace."""

    answers_like = "local onnxruntime-cpu"

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int], pace: float = 1.0) -> None:
        self.profile, self.lengths, self.pace = profile, tuple(lengths), pace
        self.fingerprint: dict[str, Any] = {"cpu": "size", "cores": 1, "features": [], "memory_bytes": 2**30, "busy_cores": 0.0}
        self.calls = 0
        self.closed = 0

    def milliseconds(self, model: Path) -> float:
        """One inference of a model folder."""
        return onnx_file(model).stat().st_size / 1e5

    def time(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Timing, list[Timing]]:
        self.calls += 1
        times = [self.pace * self.milliseconds(path) for path in (baseline, *models)]
        timings = []
        for ms, path in zip(times, (baseline, *models), strict=True):
            speedup = times[0] / ms
            latency = Latency(ms, ms * 1.1, ms * 1.2, (ms * 0.99, ms * 1.01), 30)
            interval = (speedup * 0.98, speedup * 1.02)
            timings.append(Timing(latency, speedup, interval, scheme_of(path), ms, ms, memory_bytes=10**6))
        return timings[0], timings[1:]

    def predict(self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]) -> NDArray[np.float32]:
        return predict(onnx_file(model), batches)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Latency tables and fine-tuned teachers of earlier sessions do not count."""
    os.environ["AUTOCOMPRESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo's labelled and unlabelled sentences."""
    return demo.data_files(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture(scope="session")
def sentences(demo_files: tuple[Path, Path]) -> list[tuple[str, int]]:
    """Real labelled sentences."""
    labelled, _ = demo_files
    with labelled.open(encoding="utf-8", newline="") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def data_file(sentences: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 real sentences, half of each label."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    chosen = [s for s in sentences if s[1] == 1][:200] + [s for s in sentences if s[1] == 0][:200]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(chosen)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier of 4 layers, 4 heads of 8, FFN 64, with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(demo.model_folder())
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder

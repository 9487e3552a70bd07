"""Shared: real sentences, a tiny model on disk, a timer that does not depend on the machine."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from autocompress import demo
from autocompress.interfaces import Timing
from autocompress.pareto import Latency

torch.set_num_threads(1)


class SizeTimer:
    """Latency is proportional to the size of the ONNX file: 1 ms per 100 kB."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, baseline: Path, models: Sequence[Path], *, final: bool) -> tuple[Latency, list[Timing]]:
        self.calls += 1
        sizes = [path.stat().st_size / 1e5 for path in (baseline, *models)]
        latencies = [Latency(size, size * 1.1, (size * 0.99, size * 1.01), 30) for size in sizes]
        speedups = [sizes[0] / size for size in sizes[1:]]
        return latencies[0], [Timing(l, s, (s * 0.98, s * 1.02)) for l, s in zip(latencies[1:], speedups, strict=True)]


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


@pytest.fixture
def timer() -> SizeTimer:
    return SizeTimer()

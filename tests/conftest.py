"""Shared: real sentences, a tiny model on disk, a device that does not depend on the machine."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from autocompress import demo, shipping
from autocompress.artifact import onnx_file, scheme_of
from autocompress.engine.loop import SearchResult
from autocompress.families import family_of
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.hardware.agent import kept
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Batch
from autocompress.scores import Latency, Timing
from autocompress.searching import search
from tests.additive_device import Connected
from tests.searching import space

torch.set_num_threads(1)


class SizeDevice:
    """Latency is proportional to the size of the ONNX file: 1 ms per 100 kB, times the pace."""

    answers_like = "local onnxruntime-cpu"

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int], pace: float = 1.0) -> None:
        self.profile, self.lengths, self.pace = profile, tuple(lengths), pace
        self.fingerprint: dict[str, Any] = {
            "cpu": "size",
            "cores": 1,
            "features": [],
            "memory_bytes": 2**30,
            "busy_cores": 0.0,
        }
        self.calls = 0
        self.closed = 0

    def milliseconds(self, model: Path) -> float:
        """One inference of a model folder."""
        return onnx_file(model).stat().st_size / 1e5

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        self.calls += 1
        times = [self.pace * self.milliseconds(path) for path in (baseline, *models)]
        timings = []
        for ms, path in zip(times, (baseline, *models), strict=True):
            speedup = times[0] / ms
            latency = Latency(ms, ms * 1.1, ms * 1.2, (ms * 0.99, ms * 1.01), 30)
            interval = (speedup * 0.98, speedup * 1.02)
            timings.append(
                Timing(latency, speedup, interval, scheme_of(path), ms, ms, memory_bytes=10**6)
            )
        return timings[0], timings[1:]

    def predict(
        self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        return predict(onnx_file(model), batches, kept)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Latency tables and fine-tuned teachers of earlier sessions do not count."""
    os.environ["AUTOCOMPRESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model that ships has the graph that an equal one was traced to, which would take most of
    the time of a small search; it is compared with torch all the same."""
    graphs = tmp_path_factory.mktemp("graphs")

    def found(model: Any, path: Path, example: Batch) -> None:
        graph = graphs / _digest(model, example)
        if graph.exists():
            shutil.copyfile(graph, path)
        else:
            to_onnx(model, path, example)
            shutil.copyfile(path, graph)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "to_onnx", found)
        yield


def _digest(model: Any, example: Batch) -> str:
    """Of everything that a graph depends on."""
    sizes = family_of(model.config.model_type).structure(model).sizes()
    shapes = {name: array.shape for name, array in example.inputs.items()}
    not_shared = [name for name, _ in model.named_parameters()]
    told = model.config.to_json_string(), repr(model), sizes, shapes, not_shared
    digest = hashlib.sha256(repr(told).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo's labelled and unlabelled sentences."""
    return demo.data_files(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture(scope="session")
def sentences(demo_files: tuple[Path, Path]) -> list[tuple[str, int]]:
    """Real labelled sentences."""
    return read_reviews(demo_files[0])


@pytest.fixture(scope="session")
def data_file(sentences: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 real sentences, half of each label."""
    return write_reviews(sentences, tmp_path_factory.mktemp("data") / "reviews.csv")


def write_reviews(sentences: Sequence[tuple[str, int]], path: Path) -> Path:
    """200 of each label."""
    chosen = [s for s in sentences if s[1] == 1][:200] + [s for s in sentences if s[1] == 0][:200]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(chosen)
    return path


def read_reviews(path: Path) -> list[tuple[str, int]]:
    """Labelled sentences."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def taught(model: Any, tokenizer: Any, data_file: Path) -> None:
    """Train a classifier until it knows most of the sentences by heart: one that is no better than
    a constant answer is refused."""
    sentences, labels = zip(*read_reviews(data_file), strict=True)
    texts = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        batch = torch.randint(len(labels), (32,))
        optimizer.zero_grad()
        inputs = {name: texts[name][batch] for name in ("input_ids", "attention_mask")}
        model(**inputs, labels=torch.tensor(labels)[batch]).loss.backward()
        optimizer.step()


@pytest.fixture(scope="session")
def tiny_model(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", data_file)


def write_tiny_model(folder: Path, data_file: Path) -> Path:
    """A BERT classifier of 4 layers, 4 heads of 8, FFN 64, with the tokenizer of the demo; it is
    ``taught``."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model: Any = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
    tokenizer = AutoTokenizer.from_pretrained(demo.model_folder())
    tokenizer.model_max_length = 64
    taught(model, tokenizer, data_file)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


END = "<|endoftext|>"


@pytest.fixture(scope="session")
def documents(sentences: list[tuple[str, int]]) -> list[str]:
    """300 of three real sentences each, one a line; each has a character of two bytes."""
    lines = [text for text, _ in sentences[:900]]
    return ["\n".join(lines[i : i + 3]) + " é" for i in range(0, 900, 3)]


@pytest.fixture(scope="session")
def byte_tokenizer(documents: list[str]) -> Any:
    """GPT-2's kind: bytes, merged; what it encodes it decodes exactly. 600 tokens, of which none
    pads."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        documents, vocab_size=600, special_tokens=[END], show_progress=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token=END)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="session")
def text_file(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents as JSON lines."""
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="session")
def tiny_gpt2(
    documents: list[str], byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A language model of 4 layers, 4 heads of 8, FFN 64, 64 positions, that has learned a little
    of the documents."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=600,
        n_positions=64,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_inner=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config)
    stream = torch.tensor(
        [token for ids in byte_tokenizer(documents)["input_ids"] for token in (*ids, 0)]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        starts = torch.randint(len(stream) - 64, (16,))
        batch = torch.stack([stream[start : start + 64] for start in starts])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whole(
    tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchResult:
    """An uninterrupted search of 8 candidates."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, connect=SizeDevice)


@pytest.fixture(scope="session")
def by_task(
    tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchResult:
    """A search at the lengths of its task."""
    out = tmp_path_factory.mktemp("runs") / "task"
    return search(
        tiny_model,
        data_file,
        "cpu-1-thread-task",
        space({"quantization": {"scheme": ["int8-dynamic"]}}),
        out,
        trials=1,
        connect=Connected(),
    )

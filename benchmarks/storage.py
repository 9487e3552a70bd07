"""What coded files weigh, and what decoding them costs: the demo's encoder, nothing trained.

Each file is compared with the plain one of the same weights, in turn with it. How many points a
format loses is not here: the encoder's head is untrained. Takes some five minutes. The last thing
printed is one JSON document:

    formats             by format and arithmetic:
      bits_per_weight   of the file
      latency_ratio     coded over plain, 10th percentiles of CPU time at 32 tokens, in turn
      load_ms           CPU time to load the coded file, less that of the plain one
      identical         whether all answers are the same to the last bit
    sparse_int8_ratio   of bytes of the layers, plain over stored: int8 with 90 % zeros
    device              what it ran on
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress import demo
from autocompress.candidate import Candidate
from autocompress.formats import convert
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import Model
from autocompress.graphs.storage import store
from autocompress.hardware.agent import describe
from autocompress.interfaces import Batch
from autocompress.quantizers import QUANTIZERS
from autocompress.quantizers.codes import Quantizer
from autocompress.techniques import SETTINGS
from autocompress.techniques.codes import array_of, matrices
from autocompress.training.teacher import load_classifier

TOKENS = 32
FORMATS: dict[str, Quantizer] = {
    "linear 8": QUANTIZERS["linear"](8),
    "linear 4 by 64": QUANTIZERS["linear"](4, 64),
    "linear 3 by 64": QUANTIZERS["linear"](3, 64),
    "centroids 4": QUANTIZERS["centroids"](4),
    "centroids 3": QUANTIZERS["centroids"](3),
    "adaptive-float 6": QUANTIZERS["adaptive-float"](6),
    "product 8": QUANTIZERS["product"](8),
}


def encoder() -> nn.Module:
    return load_classifier(str(demo.model_folder()), ("negative", "positive"))


def files(model: nn.Module, scheme: Candidate, folder: Path) -> tuple[Path, Path]:
    """The plain file of a model in a number format, and where the stored one is to be."""
    ones = np.ones((2, TOKENS), np.int64)
    example = Batch({"input_ids": ones, "token_type_ids": 0 * ones, "attention_mask": ones})
    graph, plain, coded = (folder / f"{name}.onnx" for name in ("graph", "plain", "coded"))
    to_onnx(model.eval(), graph, example)
    convert(graph, plain, scheme, [dict(example.inputs)])
    coded.write_bytes(plain.read_bytes())
    return plain, coded


def code(model: nn.Module, quantizer: Quantizer) -> None:
    with torch.no_grad():
        for module in matrices(model).values():
            module.weight.copy_(torch.from_numpy(quantizer.codes(array_of(module)).decode()))


def milliseconds(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return 1000 * (time.process_time() - start)


def compared(plain: Path, coded: Path, weights: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20_000, (1, TOKENS))
    inputs = {"input_ids": ids, "token_type_ids": 0 * ids, "attention_mask": np.ones_like(ids)}
    loads = [[milliseconds(partial(Model, p, threads=1)) for p in (plain, coded)] for _ in range(5)]
    models = [Model(path, threads=1) for path in (plain, coded)]
    answers = [model(inputs) for model in models]
    times = [[milliseconds(partial(m, inputs)) for m in models] for _ in range(rounds)]
    fast = np.percentile(times, 10, axis=0)
    return {
        "bits_per_weight": round(8 * coded.stat().st_size / weights, 3),
        "latency_ratio": round(float(fast[1] / fast[0]), 3),
        "load_ms": round(float(np.diff(np.median(loads, axis=0))[0]), 1),
        "identical": answers[0].tobytes() == answers[1].tobytes(),
    }


def sparse_int8_ratio(folder: Path) -> float:
    """Magnitudes below the ninth decile of each matrix are zero, the embeddings' are not."""
    model, scheme = encoder(), SETTINGS.candidate({"quantization.scheme": "int8-dynamic"})
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    layers = {k: m for k, m in matrices(model).items() if id(m.weight) not in tables}
    with torch.no_grad():
        for module in layers.values():
            size = module.weight.abs()
            module.weight[size < size.flatten().kthvalue(int(0.9 * size.numel())).values] = 0
    _, stored = files(model, scheme, folder)
    told = store(stored, [])
    held: int = sum(told["bitmaps"].values())
    whole: int = sum(m.weight.numel() for m in layers.values())
    return round(float(whole / held), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="runs of each model (200)")
    rounds = parser.parse_args().rounds
    formats: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, quantizer in FORMATS.items():
            model = encoder()
            code(model, quantizer)
            codes = [quantizer.found(array_of(module)) for module in matrices(model).values()]
            weights = sum(parameter.numel() for parameter in model.parameters())
            for scheme in ("fp32", "int8-dynamic"):
                chosen = SETTINGS.candidate({"quantization.scheme": scheme})
                plain, coded = files(model, chosen, folder)
                store(coded, codes)
                formats[f"{title}, {scheme}"] = compared(plain, coded, weights, rounds)
                print(f"{title}, {scheme}: {formats[f'{title}, {scheme}']}", flush=True)
        document = {
            "formats": formats,
            "sparse_int8_ratio": sparse_int8_ratio(folder),
            "device": describe(),
        }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()

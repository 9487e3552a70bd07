"""Layers that keep more bits than the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
)

from autocompress.errors import CandidateFailed, UserError
from autocompress.formats import FORMATS, convert, layer_formats
from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Batch
from autocompress.techniques import SETTINGS
from tests.small_graphs import (
    HIDDEN,
    LAYERS,
    VOCABULARY,
    batches,
    candidate,
    each_model,
    logit_error,
    write_graphs,
)

MORE_BITS = {
    "int8-dynamic": "fp32",
    "int8-static": "fp32",
    "int8-weights": "fp32",
    "int4-weights": "int8-weights",
}
"""Scheme -> the scheme of the layers that are spared."""
SPARED: list[tuple[Any, list[int]]] = [
    ("none", []),
    ("first", [0]),
    ("last", [2]),
    ("ends", [0, 2]),
    ([1], [1]),
    ([0, 1, 2], [0, 1, 2]),
]
"""Setting, and the layers of three that it spares; which layers those are depends on no model."""


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_graphs(tmp_path_factory.mktemp("graphs"))


def layer_weights(path: Path) -> list[list[str]]:
    """Names of the matrices that each layer of an fp32 graph multiplies by."""
    graph = onnx.load(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    products = [
        node
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in stored
    ]
    return [[node.input[1] for node in products if f".{i}/" in node.name] for i in range(LAYERS)]


def stored_as(path: Path, weight: str) -> dict[str, tuple[int, bytes]]:
    """What a graph holds for a matrix of the fp32 graph: what is added to its name, to type and
    bytes."""
    return {
        tensor.name.removeprefix(weight): (
            tensor.data_type,
            onnx.numpy_helper.to_array(tensor).tobytes(),
        )
        for tensor in onnx.load(path).graph.initializer
        if tensor.name == weight or tensor.name.startswith(f"{weight}_")
    }


@each_model
@pytest.mark.parametrize("scheme", MORE_BITS)
def test_each_layer_is_stored_as_if_all_had_its_scheme(
    graphs: dict[str, Path], model: str, scheme: str, tmp_path: Path
) -> None:
    """Spared layers hold the bits of fp32, or of int8-weights beside int4-weights; the others what
    they hold if none is spared."""
    source, target = graphs[model], tmp_path / "model.onnx"
    richer = "int8-weights" if scheme == "int4-weights" else "fp32"
    uniform = {}
    for name in (scheme, richer):
        uniform[name] = tmp_path / f"{name}.onnx"
        convert(source, uniform[name], candidate(name), batches(0))
    weights = layer_weights(source)
    for spared, listed in SPARED if model == "bert" else SPARED[3:4]:
        report = convert(source, target, candidate(scheme, spared=spared), batches(0))
        schemes = [richer if i in listed else scheme for i in range(LAYERS)]
        assert report["layers"] == schemes
        for own, names in zip(schemes, weights, strict=True):
            assert [stored_as(target, name) for name in names] == [
                stored_as(uniform[own], name) for name in names
            ]
        left = [
            name
            for own, names in zip(schemes, weights, strict=True)
            if own == "fp32"
            for name in names
        ]
        assert sorted(report["left_in_fp32"]) == sorted(left)
        assert sorted(path.stem for path in tmp_path.iterdir()) == sorted({"model", *uniform})


SUFFIXES = {
    "fp32": {""},
    "fp16": {""},
    "bf16": {""},
    "int8-dynamic": {"_quantized", "_scale", "_zero_point"},
    "int8-static": {"_quantized", "_scale", "_zero_point"},
    "int8-weights": {"_Q8", "_scales"},
    "int4-weights": {"_Q4", "_scales"},
}


@pytest.mark.parametrize("scheme", SUFFIXES)
def test_a_layer_has_the_bits_of_its_scheme(
    graphs: dict[str, Path], scheme: str, tmp_path: Path
) -> None:
    """Names, and the bytes of a weight that the table says (blocks of 32 divide the widths
    here)."""
    convert(graphs["bert"], tmp_path / "model.onnx", candidate(scheme), batches(0))
    names = layer_weights(graphs["bert"])
    assert [len(layer) for layer in names] == [6] * LAYERS
    for name in [name for layer in names for name in layer]:
        stored = stored_as(tmp_path / "model.onnx", name)
        assert set(stored) == SUFFIXES[scheme]
        [(_, whole)] = stored_as(graphs["bert"], name).values()
        [held] = [
            data
            for suffix, (_, data) in stored.items()
            if suffix in ("", "_quantized", "_Q8", "_Q4")
        ]
        assert len(whole) / len(held) == 4 / FORMATS[FORMATS[scheme].stored].bytes


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("scheme", MORE_BITS)
def test_sparing_all_layers_brings_the_logits_nearer(
    graphs: dict[str, Path], model: str, scheme: str, tmp_path: Path
) -> None:
    """With layers that matter more than the embedding and the head, which are never spared."""
    source, target = tmp_path / "fp32.onnx", tmp_path / "model.onnx"
    louder = onnx.load(graphs[model])
    names = [name for layer in layer_weights(graphs[model]) for name in layer]
    for tensor in louder.graph.initializer:
        if tensor.name in names:
            tensor.raw_data = (3 * onnx.numpy_helper.to_array(tensor)).tobytes()
    onnx.save(louder, source)
    errors = []
    for spared in ("none", list(range(LAYERS))):
        convert(source, target, candidate(scheme, spared=spared), batches(0))
        errors.append(logit_error(source, target))
    assert 0 < errors[1] < 0.9 * errors[0]


class Gemms(nn.Module):
    """Layers whose product is written as a Gemm, and under the name that GPT-2 gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.h = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(LAYERS)])

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        hidden = self.embedding(input_ids).mean(1)
        for layer in self.h:
            hidden = torch.tanh(layer(hidden))
        return SimpleNamespace(logits=hidden)


@pytest.mark.parametrize("scheme", MORE_BITS)
def test_layers_of_gemms_are_spared_too(scheme: str, tmp_path: Path) -> None:
    """Some quantizers write a Gemm as a MatMul of another name."""
    inputs = [{"input_ids": batch["input_ids"]} for batch in batches(0)]
    to_onnx(Gemms(), tmp_path / "fp32.onnx", Batch(inputs[0]))
    assert "/model/h.1/Gemm" in [node.name for node in onnx.load(tmp_path / "fp32.onnx").graph.node]
    report = convert(
        tmp_path / "fp32.onnx", tmp_path / "model.onnx", candidate(scheme, spared=[1]), inputs
    )
    assert report["layers"] == [scheme, MORE_BITS[scheme], scheme]
    for i, own in enumerate(report["layers"]):
        assert set(stored_as(tmp_path / "model.onnx", f"model.h.{i}.weight")) == SUFFIXES[own]
    predict(tmp_path / "model.onnx", inputs)


@pytest.mark.parametrize(
    ("scheme", "spared", "layers", "expected"),
    [
        ("fp32", "ends", 2, ("fp32", "fp32")),
        ("bf16", "first", 2, ("bf16", "bf16")),
        ("int8-static", "none", 2, ("int8-static", "int8-static")),
        ("int8-dynamic", "ends", 1, ("fp32",)),
        ("int8-dynamic", "last", 3, ("int8-dynamic", "int8-dynamic", "fp32")),
        ("int8-weights", [0, 2], 3, ("fp32", "int8-weights", "fp32")),
        (
            "int4-weights",
            "ends",
            4,
            ("int8-weights", "int4-weights", "int4-weights", "int8-weights"),
        ),
    ],
)
def test_the_scheme_of_each_layer(
    scheme: str, spared: Any, layers: int, expected: tuple[str, ...]
) -> None:
    assert layer_formats(candidate(scheme, spared=spared), layers) == expected


def test_a_spared_layer_that_is_not_there_fails_the_candidate(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        CandidateFailed, match=r"^quantization.spared names layer 3, the model has 3 \(0 to 2\)$"
    ):
        convert(
            graphs["bert"], tmp_path / "model.onnx", candidate("int8-dynamic", spared=[1, 3]), []
        )
    assert list(tmp_path.iterdir()) == []


def test_spared_layers_are_a_rule_or_an_ascending_list() -> None:
    domain = SETTINGS.by_name["quantization.spared"].domain
    assert [
        value
        for value in ("none", "first", "last", "ends", (0,), (1, 2))
        if not domain.allows(value)
    ] == []
    refused = (
        "all",
        1,
        0.5,
        True,
        (),
        (2, 1),
        (1, 1),
        (-1, 0),
        (0.0,),
        (False, True),
        ("first",),
        ((0,),),
    )
    assert [value for value in refused if domain.allows(value)] == []
    with pytest.raises(
        UserError,
        match=(
            r"quantization.spared is \[2, 1\], allowed is one of none, first, last, ends, or an "
            r"ascending"
        ),
    ):
        candidate("int8-dynamic", spared=[2, 1])


def test_the_table_says_which_formats_may_be_spared() -> None:
    assert {
        name: known.more_bits for name, known in FORMATS.items() if known.more_bits
    } == MORE_BITS
    assert tuple(SUFFIXES) == tuple(FORMATS)


def test_candidates_that_spare_alike_are_the_same() -> None:
    """The first layer alone has one form; where nothing can be spared, the setting is dropped."""
    assert candidate("int8-dynamic", spared=[0]) == candidate("int8-dynamic", spared="first")
    assert candidate("int4-weights", spared=[0, 2]).as_dict()["quantization.spared"] == [0, 2]
    assert len({candidate("int8-dynamic", spared=spared) for spared, _ in SPARED}) == len(SPARED)
    for scheme in FORMATS:
        assert ("quantization.spared" in candidate(scheme).active) == (scheme in MORE_BITS)
        assert (candidate(scheme) == candidate(scheme, spared="last")) == (scheme not in MORE_BITS)

"""The graph of a language model: the same logits and tokens as torch, with the cache and without,
in every number format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.pytorch_utils import Conv1D

from autocompress.candidate import Candidate
from autocompress.formats import FORMATS, convert
from autocompress.graphs.export import to_onnx
from autocompress.graphs.reading import has_cache, operations
from autocompress.graphs.runtime import Model, past_of, predict
from autocompress.interfaces import Batch
from autocompress.shipping import PARITY_LIMIT
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS
from tests.exporting import export_model
from tests.test_decoders import LANGUAGE_MODELS
from tests.test_families import ALL_FFN, FULL, STRUCTURES
from tests.tiny_models import FFN, HEADS, HIDDEN, LAYERS, MODELS, VOCABULARY, build

each_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)
TIED = ["gpt2 with its head tied", "gpt2 scaled by layer", "llama ungrouped, tied, with biases"]
QUANTIZED = [scheme for scheme in FORMATS if scheme.startswith("int")]
Arrays = dict[str, NDArray[Any]]


def texts(rows: int, length: int) -> Arrays:
    ids = np.random.default_rng(length).integers(5, VOCABULARY, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def exported(model: nn.Module, path: Path) -> Path:
    to_onnx(model, path, Batch(texts(1, 4)))
    return path


def logits(model: Any, given: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    with torch.inference_mode():
        answers: NDArray[np.float32] = model(
            **{key: torch.from_numpy(value) for key, value in given.items()}
        ).logits.numpy()
    return answers


def in_pieces(path: Path, given: Arrays, *ends: int) -> NDArray[np.float32]:
    """Logits of texts that are read piece by piece, each with what was before it in the cache."""
    model, past, pieces = Model(path, threads=1), dict[str, NDArray[Any]](), []
    for start, end in zip((0, *ends), (*ends, given["input_ids"].shape[1]), strict=True):
        outputs = model.outputs(
            {
                "input_ids": given["input_ids"][:, start:end],
                "attention_mask": given["attention_mask"][:, :end],
                **past,
            }
        )
        past = past_of(outputs)
        pieces.append(outputs["logits"])
    return np.concatenate(pieces, axis=1)


@each_model
@pytest.mark.parametrize(
    "title", ["uncut", "every layer another size", "a layer without heads", "one empty layer"]
)
def test_logits_are_torchs_however_a_text_is_cut(name: str, title: str, tmp_path: Path) -> None:
    smaller = MODELS[name].family.cut(build(name), STRUCTURES[title])
    path = exported(smaller, tmp_path / "model.onnx")
    for rows, length, ends in (
        (1, 1, ()),
        (3, 12, ()),
        (2, 12, (11,)),
        (1, 9, tuple(range(1, 9))),
        (2, 20, (3, 4, 17)),
    ):
        given = texts(rows, length)
        np.testing.assert_allclose(
            in_pieces(path, given, *ends), logits(smaller, given), rtol=0, atol=PARITY_LIMIT
        )


@each_model
def test_a_cache_has_the_heads_of_its_layer_and_none_where_there_are_none(
    name: str, tmp_path: Path
) -> None:
    structure = Structure((Layer(0, (), (1,)), Layer(1, (0, 2, 3), ALL_FFN), Layer(2, (1,), ())))
    path = exported(MODELS[name].family.cut(build(name), structure), tmp_path / "model.onnx")
    session, size = Model(path, threads=1).session, MODELS[name].head_size
    cache = {
        f"{layer}.{part}": ["batch", heads, "past", size]
        for layer, heads in ((1, 3), (2, 1))
        for part in ("key", "value")
    }
    assert {item.name: item.shape for item in session.get_inputs()} == {
        "input_ids": ["batch", "length"],
        "attention_mask": ["batch", "total"],
        **{f"past_key_values.{key}": shape for key, shape in cache.items()},
    }
    assert [item.name for item in session.get_outputs()] == [
        "logits",
        *(f"present.{key}" for key in cache),
    ]
    assert has_cache(path)


@each_model
def test_exporting_leaves_the_model_as_it_was(name: str, tmp_path: Path) -> None:
    model: Any = build(name)
    given, attention, product = texts(2, 6), model.config._attn_implementation, Conv1D.forward
    before = logits(model, given)
    exported(model, tmp_path / "model.onnx")
    assert model.config._attn_implementation == attention and Conv1D.forward is product
    assert np.array_equal(logits(model, given), before)


@each_model
def test_weights_are_stored_once(name: str, graph: Callable[[str], Path]) -> None:
    model = build(name)
    stored = sum(
        int(np.prod(tensor.dims))
        for tensor in onnx.load(graph(name)).graph.initializer
        if len(tensor.dims) == 2
    )
    assert stored == sum(
        parameter.numel() for parameter in model.parameters() if parameter.dim() == 2
    )


@each_model
def test_keys_are_not_copied_for_queries_that_share_them(
    name: str, graph: Callable[[str], Path]
) -> None:
    """Nothing as large as the cache but its growth by a token, and no check for rows of NaN."""
    whole = onnx.load(graph(name)).graph
    present = {item.name for item in whole.output}
    operators = Counter(node.op_type for node in whole.node)
    assert not {"IsNaN", "Gemm"} - {"Gemm"} & set(operators)
    readers = {node.op_type for node in whole.node if present & set(node.input)}
    assert readers <= {"Transpose", "MatMul"}


def generated(path: Path, prompts: Arrays, count: int) -> NDArray[np.int64]:
    """Tokens chosen greedily by the graph, one by one with the cache, shape (rows, count)."""
    model, feed, mask, tokens = Model(path, threads=1), dict(prompts), prompts["attention_mask"], []
    for _ in range(count):
        outputs = model.outputs(feed)
        tokens.append(outputs["logits"][:, -1:].argmax(axis=-1))
        mask = np.concatenate([mask, np.ones_like(tokens[-1])], axis=1)
        feed = {"input_ids": tokens[-1], "attention_mask": mask, **past_of(outputs)}
    return np.concatenate(tokens, axis=1)


@each_model
@pytest.mark.parametrize(
    "structure",
    [
        STRUCTURES["uncut"],
        STRUCTURES["every layer another size"],
        STRUCTURES["a layer without heads"],
    ],
)
def test_64_greedy_tokens_after_20_prompts_are_torchs(
    name: str, structure: Structure, tmp_path: Path
) -> None:
    """Prompts of 1 to 20 tokens, padded on the left."""
    smaller: Any = MODELS[name].family.cut(build(name), structure)
    prompts = texts(20, 20)
    prompts["attention_mask"] = (np.arange(20) >= np.arange(20)[:, None]).astype(np.int64)
    given = {key: torch.from_numpy(value) for key, value in prompts.items()}
    expected = smaller.generate(**given, max_new_tokens=64, do_sample=False, eos_token_id=None)[
        :, 20:
    ].numpy()
    tokens = generated(exported(smaller, tmp_path / "model.onnx"), prompts, 64)
    assert np.array_equal(tokens, expected)
    assert len(set(tokens.flatten().tolist())) > 5


def candidate(scheme: str, **more: Any) -> Candidate:
    return SETTINGS.candidate(
        {"quantization.scheme": scheme}
        | {f"quantization.{key}": value for key, value in more.items()}
    )


def quantized(model: nn.Module, folder: Path, scheme: str) -> tuple[Path, dict[str, Any]]:
    source, target = exported(model, folder / "source.onnx"), folder / f"{scheme}.onnx"
    report = convert(source, target, candidate(scheme), [texts(8, 16)], by_token=True)
    return target, report


Converted = Callable[[str, str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of a whole model, exported once."""
    return cache(
        lambda name: exported(build(name), tmp_path_factory.mktemp("graphs") / "source.onnx")
    )


@pytest.fixture(scope="module")
def converted(graph: Callable[[str], Path]) -> Converted:
    """A whole model in a number format, converted once; its graph lies beside it."""

    @cache
    def once(name: str, scheme: str) -> tuple[Path, dict[str, Any]]:
        target = graph(name).with_name(f"{scheme}.onnx")
        calibration = [texts(8, 16)]
        return target, convert(graph(name), target, candidate(scheme), calibration, by_token=True)

    return once


@each_model
@pytest.mark.parametrize("scheme", QUANTIZED)
def test_every_matrix_is_quantized_the_head_too(
    name: str, scheme: str, converted: Converted
) -> None:
    target, report = converted(name, scheme)
    assert report["left_in_fp32"] == {}
    before, _ = operations(target.with_name("source.onnx"))
    after, _ = operations(target)
    assert Counter(product.weights for product in after) == Counter(
        product.weights for product in before
    )
    head = {product.scheme for product in after if product.weights == VOCABULARY * HIDDEN}
    assert head == {"int8-dynamic" if name in TIED else scheme}
    assert {path.name for path in target.parent.iterdir()} <= {
        "source.onnx",
        *(f"{scheme}.onnx" for scheme in FORMATS),
    }


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("scheme", QUANTIZED)
def test_a_tied_table_is_stored_once_in_eight_bits(
    name: str, scheme: str, converted: Converted
) -> None:
    model: Any = build(name)
    target, _ = converted(name, scheme)
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(target).graph.initializer
    }
    [key] = [key for key, array in tensors.items() if array.size == VOCABULARY * HIDDEN]
    assert tensors[key].dtype == np.int8
    back = tensors[key].T * tensors[key.replace("_quantized", "_row_scale")]
    table = model.get_input_embeddings().weight.detach().numpy()
    assert (np.abs(back - table) <= np.abs(table).max(axis=1, keepdims=True) / 254 * 1.001).all()


@each_model
@pytest.mark.parametrize("scheme", FORMATS)
def test_logits_stay_near_with_the_cache_too(name: str, scheme: str, converted: Converted) -> None:
    target, _ = converted(name, scheme)
    given = texts(4, 24)
    expected = logits(build(name), given)
    for answers in (in_pieces(target, given), in_pieces(target, given, 8, 9, 20)):
        error = float(np.sqrt(np.mean((answers - expected) ** 2)) / expected.std())
        assert error <= {
            "fp32": 1e-5,
            "bf16": 1e-5,
            "fp16": 0.01,
            "int4-weights": 0.5,
            "int8-static": 0.35,
        }.get(scheme, 0.1)


@each_model
def test_int8_activations_have_a_scale_for_each_token(name: str, converted: Converted) -> None:
    """A text read at once gives what it gives token by token."""
    target, _ = converted(name, "int8-dynamic")
    given = texts(3, 24)
    np.testing.assert_allclose(
        in_pieces(target, given), in_pieces(target, given, *range(1, 24)), rtol=0, atol=PARITY_LIMIT
    )


def test_activations_that_are_all_zero_count_nothing(tmp_path: Path) -> None:
    """Layers whose values, and so the inputs of the attention's output, are zero."""
    name = "llama with a language head"
    model = build(name)
    with torch.no_grad():
        for layer in range(LAYERS):
            model.get_parameter(f"model.layers.{layer}.self_attn.v_proj.weight").zero_()
    target, _ = quantized(model, tmp_path, "int8-dynamic")
    expected = logits(model, texts(2, 9))
    assert np.sqrt(np.mean((predict(target, [texts(2, 9)]) - expected) ** 2)) < 0.1 * expected.std()


@each_model
def test_spared_layers_keep_their_bits(
    name: str, graph: Callable[[str], Path], tmp_path: Path
) -> None:
    source, target = graph(name), tmp_path / "target.onnx"
    report = convert(
        source, target, candidate("int8-dynamic", spared="first"), [texts(8, 16)], by_token=True
    )
    assert report["layers"] == ["int8-dynamic" if layer else "fp32" for layer in range(LAYERS)]
    of_first = {
        node.input[1]
        for node in onnx.load(source).graph.node
        if node.op_type == "MatMul" and ".0/" in node.name
    }
    stored = {tensor.name for tensor in onnx.load(source).graph.initializer}
    assert set(report["left_in_fp32"]) == of_first & stored
    np.testing.assert_allclose(
        in_pieces(target, texts(1, 9), 4), predict(target, [texts(1, 9)]), rtol=0, atol=PARITY_LIMIT
    )


@pytest.mark.parametrize("name", ["llama with a language head", "mistral", "qwen2"])
def test_rms_norms_stay_in_fp32_under_fp16(name: str, tmp_path: Path) -> None:
    """Squares of more than 256 are no numbers in fp16."""
    model = build(name)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").mul_(5000)
    given = texts(2, 9)
    expected = logits(model, given)
    target, _ = quantized(model, tmp_path, "fp16")
    assert np.sqrt(np.mean((predict(target, [given]) - expected) ** 2)) < 0.02 * expected.std()


@each_model
def test_parity_is_of_both_the_prompt_and_the_token_after_it(name: str, tmp_path: Path) -> None:
    smaller = MODELS[name].family.cut(build(name), STRUCTURES["a layer without heads"])
    (tmp_path / "tokenizer").mkdir()
    given = texts(3, 70)
    parity = export_model(
        smaller,
        STRUCTURES["a layer without heads"],
        candidate("int8-dynamic"),
        tmp_path / "t",
        [Batch(given)],
        tmp_path / "tokenizer",
    )
    few = {key: value[:2, :64] for key, value in given.items()}
    expected, answers = logits(smaller, few), in_pieces(tmp_path / "t" / "model.onnx", few, 63)
    assert parity["fp32_max_abs_difference"] <= PARITY_LIMIT
    assert parity["max_abs_difference"] == pytest.approx(float(np.abs(answers - expected).max()))
    assert parity["agreement"] == pytest.approx((answers.argmax(-1) == expected.argmax(-1)).mean())


def trained(text: bytes) -> nn.Module:
    """A byte-level GPT-2 of two layers after 200 steps on real sentences."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config)
    stream = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        rows = torch.stack(
            [stream[i : i + 65] for i in torch.randint(len(stream) - 65, (32,)).tolist()]
        )
        loss: Any = cross_entropy(
            model(input_ids=rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained: nn.Module = model.eval()
    return trained


@pytest.fixture(scope="module")
def sentences_model(sentences: list[tuple[str, int]]) -> tuple[nn.Module, Arrays]:
    """And 64 windows of 64 bytes that it has not seen."""
    text = "\n".join(sentence for sentence, _ in sentences).encode()
    held = np.frombuffer(text[-64 * 64 :], np.uint8).astype(np.int64).reshape(64, 64)
    return trained(text[: -64 * 64]), {"input_ids": held, "attention_mask": np.ones_like(held)}


def perplexity(scores: NDArray[np.float32], given: Arrays) -> float:
    targets = torch.from_numpy(given["input_ids"][:, 1:]).flatten()
    return float(cross_entropy(torch.from_numpy(scores[:, :-1]).flatten(0, 1), targets).exp())


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_perplexity_with_the_cache_is_that_without_it(
    sentences_model: tuple[nn.Module, Arrays], scheme: str, tmp_path: Path
) -> None:
    model, given = sentences_model
    target, _ = (
        quantized(model, tmp_path, scheme)
        if scheme != "int8-static"
        else (tmp_path / "static.onnx", {})
    )
    if scheme == "int8-static":
        convert(
            exported(model, tmp_path / "source.onnx"),
            target,
            candidate(scheme),
            [given],
            by_token=True,
        )
    whole, by_token = (
        perplexity(predict(target, [given]), given),
        perplexity(in_pieces(target, given, *range(1, 64)), given),
    )
    reference = perplexity(logits(model, given), given)
    assert reference < 20  # of 256 bytes: it has learnt
    assert by_token == pytest.approx(whole, rel=0.01)
    assert whole == pytest.approx(
        reference, rel=0.1 if scheme in ("int4-weights", "int8-static") else 0.02
    )


def test_what_is_no_language_model_has_no_cache(tmp_path: Path) -> None:
    name = "gpt2"
    to_onnx(build(name), tmp_path / "model.onnx", Batch(texts(2, 4)))
    assert not has_cache(tmp_path / "model.onnx")
    (tmp_path / "text.onnx").write_bytes(b"no graph at all")
    assert not has_cache(tmp_path / "text.onnx")


def test_a_model_of_layers_without_heads_has_no_cache_and_runs(tmp_path: Path) -> None:
    structure = Structure((Layer(0, (), ALL_FFN), Layer(2, (), ALL_FFN)))
    for name in LANGUAGE_MODELS:
        smaller = MODELS[name].family.cut(build(name), structure)
        path = exported(smaller, tmp_path / "model.onnx")
        np.testing.assert_allclose(
            predict(path, [texts(2, 5)]), logits(smaller, texts(2, 5)), rtol=0, atol=PARITY_LIMIT
        )
    assert (HEADS, FFN, len(FULL.layers)) == (4, 12, 3)

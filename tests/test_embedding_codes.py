"""Codes of the word embedding alone: its values, its bytes, what it cannot be beside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from autocompress.candidate import Candidate
from autocompress.errors import CandidateFailed, UserError
from autocompress.families import FAMILIES
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Batch, Knowledge
from autocompress.plan import Plan
from autocompress.quantizers import QUANTIZERS
from autocompress.quantizers.codebooks import Codebooks
from autocompress.quantizers.codes import Quantizer
from autocompress.recipes import Recipe
from autocompress.student import first
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.codes import matrices
from autocompress.training.teacher import load_classifier
from tests.exporting import export_model

FAMILY = FAMILIES["bert"]
TABLE = "bert.embeddings.word_embeddings.weight"
IDS = np.arange(1000, 1024).reshape(2, 12)
BATCH = Batch({"input_ids": IDS, "attention_mask": np.ones_like(IDS)})
WAYS: list[tuple[dict[str, Any], Quantizer]] = [
    ({"embedding.format": "linear", "embedding.bits": 2}, QUANTIZERS["linear"](2, "row")),
    ({"embedding.format": "centroids", "embedding.bits": 3}, QUANTIZERS["centroids"](3)),
    ({"embedding.format": "adaptive-float"}, QUANTIZERS["adaptive-float"](4, "row")),
    ({"embedding.format": "product", "embedding.bits": 8}, QUANTIZERS["product"](8)),
    ({"embedding.codebooks": 8, "embedding.entries": 16}, Codebooks(4, books=8)),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    """Hidden size 32."""
    return load_classifier(str(tiny_model), None)


def made(model: nn.Module, candidate: Candidate) -> tuple[nn.Module, Plan]:
    plan = resolve(Plan("bert", FAMILY.structure(model)), candidate, Knowledge({}))
    return first(model, FAMILY, plan, "copied").eval(), plan


@pytest.mark.parametrize(("chosen", "quantizer"), WAYS, ids=str)
def test_the_table_takes_its_own_values_and_the_others_theirs(
    chosen: dict[str, Any], quantizer: Quantizer, model: nn.Module
) -> None:
    student, plan = made(model, SETTINGS.candidate({**chosen, "codes.format": "linear"}))
    whole = dict(model.named_parameters())
    coded = {f"{path}.weight" for path in matrices(model)}
    for name, parameter in student.named_parameters():
        other = QUANTIZERS["linear"](4) if name in coded else None
        by, before = quantizer if name == TABLE else other, whole[name].detach().numpy()
        after = by.codes(before).decode() if by else before
        assert parameter.detach().numpy().tobytes() == after.tobytes()
    assert len(plan.sizes()["parts"]) == 2


@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic"])
@pytest.mark.parametrize(("chosen", "quantizer"), WAYS, ids=str)
def test_the_file_holds_the_bytes_of_the_formula_and_answers_as_the_dense_one(
    chosen: dict[str, Any], quantizer: Quantizer, scheme: str, model: nn.Module, tmp_path: Path
) -> None:
    student, plan = made(model, SETTINGS.candidate(chosen))
    (tmp_path / "tokenizer").mkdir()
    number_format = SETTINGS.candidate({"quantization.scheme": scheme})
    dense, coded = tmp_path / "dense", tmp_path / "coded"
    for target, written in ((dense, Plan("bert", plan.structure)), (coded, plan)):
        export_model(student, written, number_format, target, [BATCH], tmp_path / "tokenizer")
    answers = [predict(folder / "model.onnx", [dict(BATCH.inputs)]) for folder in (dense, coded)]
    assert answers[0].tobytes() == answers[1].tobytes()
    codes = quantizer.found(dict(student.named_parameters())[TABLE].detach().numpy())
    count = codes.indices.size
    others = count - np.bincount(codes.indices).max()
    expected = min(count * codes.bits, count + others * codes.bits) / 8
    expected += 4 * (codes.table.size + codes.scales.size) + 8 * len(codes.outliers)
    facts = json.loads((coded / "autocompress.json").read_text(encoding="utf-8"))
    [(name, told)] = facts["storage"]["codes"].items()
    assert "word_embeddings" in name and told == pytest.approx(expected, rel=0.02)
    saved = codes.shape[0] * codes.shape[1] * (4 if scheme == "fp32" else 1) - expected
    sizes = [(folder / "model.onnx").stat().st_size for folder in (dense, coded)]
    assert sizes[0] - sizes[1] == pytest.approx(saved, abs=0.02 * expected + 4096)


def test_codebooks_are_the_slices_of_a_row() -> None:
    """Two slices of two values each, of which each row has one or the other."""
    low, high = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], np.float32)
    picks = np.array([[0, 1], [1, 0], [1, 1], [0, 0]])
    weight = np.concatenate([low[picks[:, 0]], high[picks[:, 1]]], axis=1)
    codes = Codebooks(2, books=2).codes(weight)
    assert codes.decode().tobytes() == weight.tobytes()
    assert codes.table.shape == (4, 2) and codes.indices.tolist() == picks.ravel().tolist()


def test_codebooks_that_do_not_divide_fail_the_candidate(model: nn.Module) -> None:
    with pytest.raises(
        CandidateFailed,
        match=r"^embedding of 5 codebooks of 256, bert\.embeddings\.word_embeddings: "
        "5 codebooks do not divide rows of 32 weights$",
    ):
        made(model, SETTINGS.candidate({"embedding.codebooks": 5}))


@pytest.mark.parametrize("change", ["embedding.codebooks=8", "embedding.format=linear"])
def test_factors_have_no_codes_of_their_own(change: str) -> None:
    key = re.escape(change.partition("=")[0])
    with pytest.raises(UserError, match=f"^--set: {key} means nothing beside the other settings$"):
        Recipe.load("factorized-embedding", [change])

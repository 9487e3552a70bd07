"""Matrices of few values: at the end of training, in scores before it, and in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.artifact import load_model
from autocompress.candidate import Candidate
from autocompress.errors import CandidateFailed
from autocompress.families import FAMILIES
from autocompress.interfaces import Batch, Knowledge
from autocompress.plan import Plan
from autocompress.quantizers import QUANTIZERS
from autocompress.student import first
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.codes import Coded, array_of, matrices
from autocompress.training.teacher import load_classifier
from tests.exporting import export_model

FAMILY = FAMILIES["bert"]
IDS = np.arange(1000, 1024).reshape(2, 12)
BATCH = Batch({"input_ids": IDS, "attention_mask": np.ones_like(IDS)})


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    """4 layers, hidden size 32, FFN 64."""
    return load_classifier(str(tiny_model), None)


def candidate(**codes: Any) -> Candidate:
    return SETTINGS.candidate({f"codes.{name}": value for name, value in codes.items()})


def planned(model: nn.Module, chosen: Candidate) -> Plan:
    return resolve(Plan("bert", FAMILY.structure(model)), chosen, Knowledge({}))


def coded(model: nn.Module, chosen: Candidate) -> tuple[nn.Module, Plan]:
    plan = planned(model, chosen)
    return first(model, FAMILY, plan, "copied").eval(), plan


@pytest.mark.parametrize("name", QUANTIZERS)
def test_untrained_weights_are_coded_at_once(name: str, model: nn.Module) -> None:
    """Every matrix and table of embeddings, nothing else."""
    student, plan = coded(model, candidate(format=name, bits=3))
    assert plan.part("codes") == Coded(name, 3, "tensor", -4.0, at_once=True)
    whole = dict(model.named_parameters())
    names = {f"{path}.weight" for path in matrices(model)}
    assert {"bert.embeddings.word_embeddings.weight", "classifier.weight"} < names
    for key, parameter in student.named_parameters():
        before = whole[key].detach().numpy()
        after = QUANTIZERS[name](3).codes(before).decode() if key in names else before
        assert parameter.detach().numpy().tobytes() == after.tobytes()


def test_what_is_to_be_trained_begins_as_it_is(model: nn.Module) -> None:
    chosen = SETTINGS.candidate({"codes.format": "linear", "recovery.steps": 8})
    student, plan = coded(model, chosen)
    for mine, theirs in zip(student.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert plan.sizes()["parts"] == ["4-bit linear codes"]


def test_a_group_that_does_not_divide_fails_the_candidate(model: nn.Module) -> None:
    with pytest.raises(
        CandidateFailed,
        match=r"^4-bit linear codes by 128, bert\.embeddings\.word_embeddings: "
        "groups of 128 do not divide rows of 32 weights$",
    ):
        coded(model, candidate(format="linear", group=128))


@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic"])
def test_the_folder_holds_codes_and_loads_as_the_student(
    scheme: str, model: nn.Module, tmp_path: Path
) -> None:
    """The file's bytes are those of the codes; what the folder says of storage is the file's."""
    (tmp_path / "tokenizer").mkdir()
    sizes = {}
    for name in ("none", "centroids"):
        student, plan = coded(model, candidate(format=name))
        chosen = SETTINGS.candidate({"quantization.scheme": scheme})
        target = tmp_path / name
        export_model(student, plan, chosen, target, [BATCH], tmp_path / "tokenizer")
        sizes[name] = (target / "model.onnx").stat().st_size
        loaded = load_model(target)
        for path, module in matrices(loaded).items():
            assert np.array_equal(array_of(module), array_of(student.get_submodule(path)))
        facts = json.loads((target / "autocompress.json").read_text(encoding="utf-8"))
        assert ("storage" in facts) == (name != "none")
    table = [key for key in facts["storage"]["codes"] if "word_embeddings" in key]
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    [bytes_stored] = [facts["storage"]["codes"][key] for key in table]
    assert vocabulary * 32 * 4 / 8 <= bytes_stored <= vocabulary * 32 * 4 / 8 * 1.05
    saved = vocabulary * 32 * (4 if scheme == "fp32" else 1) - bytes_stored
    assert sizes["none"] - sizes["centroids"] > 0.9 * saved


def test_plain_students_are_stored_as_ever(model: nn.Module) -> None:
    assert Plan("bert", FAMILY.structure(model)).codes(model) is None

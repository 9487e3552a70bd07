"""Matrices of few values: at the end of training, in scores before it, and in the file."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.artifact import load_model
from autocompress.candidate import Candidate
from autocompress.engine.making import recovery_of
from autocompress.errors import CandidateFailed, UserError
from autocompress.families import FAMILIES
from autocompress.interfaces import Batch, Knowledge
from autocompress.plan import Plan
from autocompress.quantizers import QUANTIZERS
from autocompress.quantizers.codes import Quantizer
from autocompress.recipes import Recipe
from autocompress.student import first
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.codes import (
    Coded,
    CodedTraining,
    Fit,
    array_of,
    matrices,
)
from autocompress.testing.models import BATCH as TEXT
from autocompress.testing.models import BERT, GPT2, Workshop, same
from autocompress.training.compute import CPU
from autocompress.training.recovery import Recovery
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


def trained(workshop: Workshop, **codes: Any) -> Recovery:
    """A recovery of 8 steps beside codes of 3 bits."""
    chosen = {"format": "linear", "bits": 3, "trained": True} | codes
    settings = {f"codes.{name}": value for name, value in chosen.items()}
    recovering = {"recovery.steps": 8, "recovery.learning_rate": 1e-2}
    whole = SETTINGS.candidate(settings | recovering)
    plan = resolve(workshop.plans["uncut"], whole, workshop.knowledge)
    student = first(workshop.model, workshop.family, plan, "copied")
    structure, teacher = plan.structure, workshop.teacher
    return recovery_of(student, structure, whole, teacher, (3, 5), parts=plan.parts)


def lesson_of(recovery: Recovery) -> tuple[CodedTraining, Any]:
    """In the first step, and the student."""
    [modifier] = recovery.modifiers
    assert isinstance(modifier, CodedTraining)
    recovery.lesson.training = True
    modifier.before_step()
    return modifier, recovery.student


@pytest.mark.parametrize("config", [BERT, GPT2], ids=["bert", "gpt2, tied"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_in_a_step_weights_are_their_codes_and_gradients_go_to_themselves(
    name: str, config: Any, tmp_path: Path
) -> None:
    """A table that a head reads, too, is coded as a whole."""
    workshop = Workshop(config, tmp_path)
    training, student = lesson_of(trained(workshop, format=name))
    by_codes = copy.deepcopy(workshop.model)
    for path, module in matrices(by_codes).items():
        module.weight.data = decoded(training.quantizers[path], module)
    answers = []
    for model in (student, by_codes):
        logits: Any = model(**CPU.tensors(TEXT)).logits
        logits.square().mean().backward()
        answers.append(logits.detach())
    assert torch.equal(*answers)
    for (key, mine), theirs in zip(student.named_parameters(), by_codes.parameters(), strict=True):
        assert theirs.grad is not None
        assert torch.equal(mine.grad.to_dense(), theirs.grad)
        assert torch.equal(mine, workshop.model.get_parameter(key))


def decoded(quantizer: Quantizer, module: Any) -> torch.Tensor:
    values = torch.from_numpy(quantizer.codes(array_of(module)).decode())
    return (values.T if hasattr(module, "nf") else values).contiguous()


@pytest.mark.parametrize("name", ["linear", "product"])
def test_noise_is_the_share_of_codes_that_are_taken(name: str) -> None:
    """Over 1,000 draws, of those codes that are not their weights; all others are as they were."""
    quantizer, share = QUANTIZERS[name](3), 0.3
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    codes = quantizer.codes(weight.numpy())
    fit, random = Fit.of(codes, weight.device), torch.Generator().manual_seed(0)
    whole = fit.nearest(weight, 1.0, random)
    assert torch.equal(whole, torch.from_numpy(codes.decode()))
    blocks, taken = weight.numel() // quantizer.block, 0
    coded_blocks = int((whole != weight).view(blocks, -1).any(1).sum())
    assert coded_blocks > 0.8 * blocks
    for _ in range(1000):
        some = fit.nearest(weight, share, random)
        changed = (some != weight).view(blocks, -1)
        assert torch.equal(changed.any(1), changed.all(1))
        assert torch.equal(some, whole.where(some != weight, weight))
        taken += int(changed.any(1).sum())
    draws = 1000 * coded_blocks
    assert abs(taken / draws - share) < 3 * (share * (1 - share) / draws) ** 0.5


def test_noise_of_1_is_training_by_codes_and_of_0_is_none(tmp_path: Path) -> None:
    workshop = Workshop(BERT, tmp_path)
    states = []
    for codes in ({}, {"noise": 1.0}, {"noise": 0.0}, {"trained": False}):
        recovery = trained(workshop, **codes)
        recovery.advance(4)
        states.append({name: p.detach().clone() for name, p in recovery.student.named_parameters()})
        recovery.finish()
    full, one, none, plain = states
    assert same(full, one) and same(none, plain) and not same(full, none)


def test_tables_are_fitted_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what was fitted is kept for going on from a step between."""
    monkeypatch.setattr("autocompress.techniques.codes.FITTED", 3)
    recovery = trained(Workshop(BERT, tmp_path))
    [modifier] = recovery.modifiers
    assert isinstance(modifier, CodedTraining)
    scales = []
    for step in range(1, 8):
        recovery.advance(step)
        scales.append(modifier.fits["classifier"].table.clone())
        assert modifier.state()["table.classifier"].equal(scales[-1])
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(scales)]
    assert changes == [False, False, True, False, False, True]


def test_sealed_weights_are_decoded_and_their_codes_are_found(tmp_path: Path) -> None:
    recovery = trained(Workshop(BERT, tmp_path), format="centroids")
    recovery.advance(8)
    assert recovery.finish() == []
    [part] = recovery.lesson.parts
    for codes, module in zip(
        part.codes(recovery.student) or (), matrices(recovery.student).values(), strict=True
    ):
        assert np.array_equal(codes.decode(), array_of(module))
        assert len(codes.table) <= 8 and len(codes.positions) < 0.05 * codes.indices.size


@pytest.mark.parametrize("setting", ["codes.trained=true", "codes.noise=0.5"])
def test_training_by_codes_without_training_is_told(setting: str) -> None:
    name = setting.partition("=")[0]
    with pytest.raises(UserError, match=f"^--set: {name} means nothing beside the other settings$"):
        Recipe.load("gobo", [setting])

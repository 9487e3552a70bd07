"""A repaired model adds to its stream what the teacher adds, as far as its matrices can."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import CandidateFailed
from autocompress.interfaces import Family
from autocompress.structure import Layer, Structure
from autocompress.tasks.text_classification import TextClassification
from autocompress.training import repair as module
from autocompress.training.outputs import Teacher, TransferSet
from autocompress.training.repair import Calibration, repair
from tests.test_families import ALL_FFN, ALL_HEADS, FULL, each_model, logits
from tests.test_recovery import padded
from tests.tiny_models import FFN, HEADS, HIDDEN, MODELS, VOCABULARY, build

LAST = len(FULL.layers) - 1


def texts(rows: int = 64, length: int = 12) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def stream(model: nn.Module, family: Family, batch: Mapping[str, Tensor]) -> Tensor:
    """What the last layer gives."""
    block = family.part(model, len(family.structure(model).layers) - 1, "block")
    given: list[Tensor] = []
    handle = block.register_forward_hook(lambda *seen: given.append(seen[2]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return given[0]


@each_model
def test_the_stream_comes_nearer_to_the_teachers(name: str) -> None:
    """Two of three layers, narrower; the teacher stays as it is, and what passes on during the
    repair is what the repaired model gives."""
    model, family = build(name), MODELS[name].family
    structure = Structure((Layer(0, (1, 3), ALL_FFN[:5]), Layer(LAST, ALL_HEADS[:2], ALL_FFN)))
    cut, batch = family.cut(model, structure), texts()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = stream(model, family, batch)
    before = (stream(cut, family, batch) - wanted).square().mean()
    passing: list[Tensor] = []
    block = family.part(cut, len(structure.layers) - 1, "block")
    handle = block.register_forward_hook(lambda *seen: passing.append(seen[2]))
    repair(cut, structure, Calibration(model, family, batch))
    handle.remove()
    torch.testing.assert_close(passing[0], stream(cut, family, batch), atol=1e-4, rtol=1e-4)
    assert (stream(cut, family, batch) - wanted).square().mean() < 0.8 * before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@each_model
def test_nothing_cut_is_nothing_repaired(name: str) -> None:
    model, family = build(name), MODELS[name].family
    same = copy.deepcopy(model)
    repair(same, FULL, Calibration(model, family, texts()))
    for key, value in same.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_neuron_takes_over_what_its_twin_added(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two neurons that fire alike: without the second, the first adds what both did."""
    monkeypatch.setattr(module, "_RIDGE", 1e-9)
    model, family = build(name), MODELS[name].family
    with torch.no_grad():
        *inputs, outputs = family.weights(model, 1, "ffn")
        for matrix in inputs:
            matrix[1] = matrix[0]
        for key, parameter in model.named_parameters():
            if parameter.shape == (FFN,) and ".1." in key:
                parameter[1] = parameter[0]
    both = outputs[0] + outputs[1]
    rest = (FULL.layers[0], Layer(1, ALL_HEADS, (0, *ALL_FFN[2:])), FULL.layers[2])
    cut = family.cut(model, Structure(rest))
    assert not torch.allclose(logits(cut), logits(model), atol=1e-4)
    repair(cut, Structure(rest), Calibration(model, family, texts()))
    torch.testing.assert_close(family.weights(cut, 1, "ffn")[-1][0], both, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(logits(cut), logits(model), atol=1e-3, rtol=1e-3)


def test_padding_does_not_count() -> None:
    model, family = build("bert"), MODELS["bert"].family
    structure = Structure((FULL.layers[0], Layer(LAST, tuple(range(HEADS // 2)), ALL_FFN)))
    batch = texts()
    padding = torch.full((64, 4), 9)
    padded = {
        "input_ids": torch.cat([batch["input_ids"], padding], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros_like(padding)], 1),
    }
    repaired = []
    for given in (batch, padded):
        repaired.append(family.cut(model, structure))
        repair(repaired[-1], structure, Calibration(model, family, given))
    torch.testing.assert_close(logits(repaired[1]), logits(repaired[0]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_calibration_serves_many_and_asks_its_teacher_once(name: str) -> None:
    """To the bit what each would be repaired to by one of its own."""
    model, family = build(name), MODELS[name].family
    shallow = Structure((FULL.layers[0], Layer(LAST, ALL_HEADS, ALL_FFN[:4])))
    narrow = Structure(tuple(Layer(i, (0, 2), ALL_FFN[:5]) for i in range(len(FULL.layers))))
    shared = Calibration(model, family, texts())
    asked: list[nn.Module] = []
    block = family.part(model, 0, "block")
    block.register_forward_pre_hook(lambda module, _: asked.append(module))
    together = []
    for structure in (narrow, shallow, narrow):
        together.append(family.cut(model, structure))
        repair(together[-1], structure, shared)
    assert asked and block not in asked
    for structure, repaired in zip((narrow, shallow, narrow), together, strict=True):
        alone = family.cut(model, structure)
        repair(alone, structure, Calibration(model, family, texts()))
        for key, value in alone.state_dict().items():
            assert torch.equal(value, repaired.state_dict()[key])


def test_what_the_teacher_adds_is_kept_by_layer_and_branch() -> None:
    """Of text alone: where a layer is followed by its norm, that norm gives the layer's output."""
    model, family = build("bert"), MODELS["bert"].family
    batch = texts(rows=3)
    batch["attention_mask"][1, 5:] = 0
    calibration = Calibration(model, family, batch)
    assert {total.shape for total in calibration.sums.values()} == {(12 + 5 + 12, HIDDEN)}
    norm, _ = family.summed(model, LAST, "ffn_output")
    wanted = stream(model, family, batch)[batch["attention_mask"].bool()]
    torch.testing.assert_close(norm(calibration.sums[LAST, "ffn_output"]), wanted)


def test_texts_are_spread_over_those_learned_from_and_cut_where_they_are_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths 2 to 9 and one of 40: 84 tokens, 9.3 a text; a third of them."""
    monkeypatch.setattr(module, "_TOKENS", 30)
    rows = [np.full((1, length), 5 + length) for length in (2, 3, 4, 40, 5, 6, 7, 8, 9)]
    transfer = TransferSet(rows, np.zeros(9, np.int64), padded, TextClassification.loss)
    teacher = Teacher(build("bert"), MODELS["bert"].family, transfer, tmp_path / "scratch")
    batch = Calibration.of(teacher).batch
    assert batch["attention_mask"].sum(1).tolist() == [2, 18, 7]
    assert batch["input_ids"].max(1).values.tolist() == [7, 45, 12]


def test_units_that_never_fire_leave_nothing_to_fit() -> None:
    model, family = build("bert"), MODELS["bert"].family
    structure = Structure(tuple(Layer(i, ALL_HEADS, (0,)) for i in range(len(FULL.layers))))
    cut = family.cut(model, structure)
    with torch.no_grad():
        weights, *_ = family.weights(cut, 0, "ffn")
        weights.zero_()
    repair(cut, structure, Calibration(model, family, texts()))
    assert all(value.isfinite().all() for value in cut.state_dict().values())


def test_numbers_that_are_not_finite_fail_the_candidate() -> None:
    model, family = build("bert"), MODELS["bert"].family
    cut = family.cut(model, FULL)
    with torch.no_grad():
        family.weights(cut, 0, "ffn")[0].fill_(float("inf"))
    with pytest.raises(CandidateFailed, match="not finite"):
        repair(cut, FULL, Calibration(model, family, texts()))

"""A repaired model adds to its stream what the teacher adds, as far as its matrices can."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from autocompress.interfaces import Family
from autocompress.structure import Layer, Structure
from autocompress.training import repair as module
from autocompress.training.repair import repair
from tests.test_families import ALL_FFN, ALL_HEADS, FULL, each_model, logits
from tests.tiny_models import FFN, HEADS, MODELS, VOCABULARY, build

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
    """Two of three layers, narrower; the teacher stays as it is."""
    model, family = build(name), MODELS[name].family
    structure = Structure((Layer(0, (1, 3), ALL_FFN[:5]), Layer(LAST, ALL_HEADS[:2], ALL_FFN)))
    cut, calibration = family.cut(model, structure), texts()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = stream(model, family, calibration)
    before = (stream(cut, family, calibration) - wanted).square().mean()
    repair(cut, model, family, structure, [calibration])
    assert (stream(cut, family, calibration) - wanted).square().mean() < 0.8 * before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@each_model
def test_nothing_cut_is_nothing_repaired(name: str) -> None:
    model, family = build(name), MODELS[name].family
    same = copy.deepcopy(model)
    repair(same, model, family, FULL, [texts()])
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
    repair(cut, model, family, Structure(rest), [texts()])
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
        repair(repaired[-1], model, family, structure, [given])
    torch.testing.assert_close(logits(repaired[1]), logits(repaired[0]), atol=1e-4, rtol=1e-4)

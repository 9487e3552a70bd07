"""Low rank, sharing, hidden size and training under int8, by value."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.engine.making import recovery_of
from autocompress.families import FAMILIES
from autocompress.graphs.export import to_onnx
from autocompress.graphs.reading import input_ranges
from autocompress.interfaces import Knowledge
from autocompress.knowledge import magnitude
from autocompress.plan import Plan
from autocompress.structure import Layer, Structure
from autocompress.student import blank, config_of, first
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.hidden_size import Hidden
from autocompress.techniques.int8_training import (
    MOMENTUM,
    Rounding,
    TrainedRanges,
    rounded,
    rounded_by_channel,
)
from autocompress.techniques.low_rank import LowRank, matrix_of
from autocompress.techniques.sharing import Shared
from autocompress.testing.models import BATCH, BERT, Workshop
from autocompress.training.teacher import load_classifier

FAMILY = FAMILIES["bert"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    """4 layers of 4 heads of 8 dimensions, FFN 64, hidden size 32."""
    return load_classifier(str(tiny_model), None)


def planned(model: nn.Module, **chosen: Any) -> Plan:
    full = Plan("bert", FAMILY.structure(model))
    settings = {name.replace("__", "."): value for name, value in chosen.items()}
    importance = {"magnitude": magnitude.measure(model, FAMILY)}
    knowledge = Knowledge(importance, measured=lambda measure: measure(model, FAMILY))
    return resolve(full, SETTINGS.candidate(settings), knowledge)


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(1000, 1024).view(2, 12)
    with torch.no_grad():
        model_logits: torch.Tensor = model.eval()(input_ids=ids).logits
    return model_logits


def weights(model: nn.Module, layer: int, name: str = "weight") -> torch.Tensor:
    """Of an FFN output."""
    return FAMILY.part(model, layer, "ffn_output").get_parameter(name)


def test_the_error_of_a_low_rank_is_what_its_singular_values_say(model: nn.Module) -> None:
    plan = planned(model, rank__keep=0.25)
    assert plan.part("low-rank") == LowRank((8,) * 4, (8,) * 4, 8, 32)
    student = first(model, FAMILY, plan, "copied")
    whole, _ = matrix_of(FAMILY.part(model, 1, "ffn_output"))
    factors: Any = FAMILY.part(student, 1, "ffn_output")
    product = factors[1].weight @ factors[0].weight
    dropped = torch.linalg.svdvals(whole.double())[8:]
    error = float((product.detach() - whole).double().pow(2).sum())
    assert error == pytest.approx(float(dropped.pow(2).sum()), rel=1e-4)
    assert torch.equal(factors[1].bias, weights(model, 1, "bias"))


def test_ranks_by_energy_hold_that_share_of_it(model: nn.Module) -> None:
    part = planned(model, rank__keep=0.6, rank__allocation="energy").part("low-rank")
    assert isinstance(part, LowRank)
    for i, rank in enumerate(part.ffn):
        whole, _ = matrix_of(FAMILY.part(model, i, "ffn_output"))
        energy = torch.linalg.svdvals(whole.double()).pow(2).cumsum(0) / whole.double().pow(2).sum()
        assert energy[rank - 2] < 0.6 <= energy[rank - 1]


def test_factors_that_would_be_no_smaller_are_merged_back(model: nn.Module) -> None:
    """A square matrix of 32 pays below rank 16, one of 64 by 32 below 22."""
    part = planned(model, rank__keep=0.55).part("low-rank")
    assert part == LowRank((0,) * 4, (18,) * 4, 8, 32)
    assert part is not None and part.terms(0, Layer(0, tuple(range(4)), tuple(range(64)))) == {
        "products": 1,
        "weights": pytest.approx((18 * 96 - 64 * 32) / 1e6),
    }
    assert planned(model, rank__keep=0.95).parts == ()


def test_shared_layers_are_one_set_of_weights_in_memory_and_on_disk(
    model: nn.Module, tmp_path: Path
) -> None:
    plan = planned(model, sharing__groups=2, sharing__start="mean")
    assert plan.part("sharing") == Shared((0, 0, 2, 2), "mean")
    student = first(model, FAMILY, plan, "copied")
    a, b, c = (FAMILY.part(student, i, "ffn_output") for i in (0, 1, 2))
    assert a.weight is b.weight and a.weight is not c.weight
    mean = (weights(model, 0) + weights(model, 1)) / 2
    assert torch.equal(a.get_parameter("weight"), mean)
    untied = copy.deepcopy(student)
    for i in range(4):
        FAMILY.put(untied, i, "ffn_output", copy.deepcopy(FAMILY.part(student, i, "ffn_output")))
    assert torch.equal(logits(student), logits(untied))
    logits_of: Any = student(input_ids=torch.arange(1000, 1012).view(1, 12)).logits
    logits_of.sum().backward()
    apart: Any = untied(input_ids=torch.arange(1000, 1012).view(1, 12)).logits
    apart.sum().backward()
    summed = sum(FAMILY.part(untied, i, "ffn_output").get_parameter("weight").grad for i in (0, 1))  # type: ignore[misc]
    torch.testing.assert_close(a.get_parameter("weight").grad, summed)
    rebuilt = blank(_config(model), plan)
    assert (
        FAMILY.part(rebuilt, 2, "ffn_output").weight is FAMILY.part(rebuilt, 3, "ffn_output").weight
    )


def _config(model: nn.Module) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model("bert", **config_of(model))


def test_a_group_has_the_units_of_its_first_layer(model: nn.Module) -> None:
    plan = planned(model, heads__keep=0.5, heads__importance="magnitude", sharing__groups=2)
    layers = plan.structure.layers
    assert layers[0].heads == layers[1].heads and layers[2].heads == layers[3].heads
    assert [layer.source for layer in layers] == [0, 1, 2, 3]


@pytest.mark.parametrize("start", ["first", "mean"])
def test_what_is_factored_in_one_layer_of_a_group_alone_stays_its_own(
    model: nn.Module, start: str
) -> None:
    """In the first layer, and in the second."""
    ranks = LowRank((0,) * 4, (8, 0, 0, 8), 8, 32)
    plan = Plan("bert", FAMILY.structure(model), (ranks, Shared((0, 0, 2, 2), start)))
    student = first(model, FAMILY, plan, "copied")
    for whole, factored in ((1, 0), (2, 3)):
        assert torch.equal(weights(student, whole), weights(model, whole))
        assert isinstance(FAMILY.part(student, factored, "ffn_output"), nn.Sequential)
    for a, b in ((0, 1), (2, 3)):
        inner = [FAMILY.part(student, i, "ffn_input").get_parameter("weight") for i in (a, b)]
        assert inner[0] is inner[1]
    assert blank(_config(model), plan).state_dict().keys() == student.state_dict().keys()


def test_the_most_important_hidden_dimensions_stay(model: nn.Module) -> None:
    plan = planned(model, hidden__keep=0.5, hidden__importance="magnitude")
    part = plan.part("hidden-size")
    assert isinstance(part, Hidden) and len(part.kept) == 16 and part.of == 32
    scores = magnitude.measure(model, FAMILY).hidden
    assert scores[list(part.kept)].min() >= np.delete(scores, part.kept).max()
    student = first(model, FAMILY, plan, "copied")
    assert FAMILY.hidden_size(student) == 16 and logits(student).shape == (2, 2)
    assert part.terms(0, Layer(0, (0, 1), (0,))) == {
        "layer": 0.5,
        "rest": 0.5,
        "heads": 1,
        "ffn": 0.5,
    }
    whole = replace(plan, parts=(Hidden(tuple(range(32)), 32),))
    assert torch.equal(logits(first(model, FAMILY, whole, "copied")), logits(model))


def test_rounding_by_hand_and_its_gradient() -> None:
    """From -1 to 1.55 a step is 0.01 and zero is the hundredth."""
    values = torch.tensor([-2.0, -1.0, -0.004, 0.0, 0.017, 1.55, 3.0], requires_grad=True)
    rounded_values = rounded(values, -1.0, 1.55)
    torch.testing.assert_close(
        rounded_values, torch.tensor([-1.0, -1.0, 0.0, 0.0, 0.02, 1.55, 1.55])
    )
    rounded_values.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None and values.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]
    weight = torch.tensor([[1.27, -0.013], [0.0, 2.54]])
    by_row = torch.tensor([[1.27, -0.01], [0.0, 2.54]])
    torch.testing.assert_close(rounded_by_channel(weight, axis=1), by_row)


def test_ranges_follow_what_is_seen_and_a_plain_model_is_left(model: nn.Module) -> None:
    student = copy.deepcopy(model)
    lesson: Any = SimpleNamespace(student=student, training=True)
    rounding = Rounding(lesson)
    for low, high in ((-1.0, 2.0), (-3.0, 1.0), (0.5, 4.0)):
        rounding._follow("bert.pooler.dense", low, high)
    low = MOMENTUM * (MOMENTUM * -1.0 + (1 - MOMENTUM) * -3.0)
    high = MOMENTUM * (MOMENTUM * 2.0 + (1 - MOMENTUM) * 1.0) + (1 - MOMENTUM) * 4.0
    assert rounding.ranges["bert.pooler.dense"] == pytest.approx((low, high))
    assert not torch.equal(logits(student), logits(model))
    lesson.training = False
    assert torch.equal(logits(student), logits(model))
    part = rounding.remove()
    assert isinstance(part, TrainedRanges)
    assert {"bert.encoder.layer.0.attention.self.query", "classifier"} <= part.ranges().keys()
    assert not any("forward" in vars(module) for module in student.modules())
    assert torch.equal(logits(student), logits(model))


def test_an_untouched_plan_has_no_parts(model: nn.Module) -> None:
    full = planned(model)
    assert full.parts == () and full.structure == Structure.full([4] * 4, [64] * 4)


def test_ranges_that_factors_learned_are_those_of_their_products(tmp_path: Path) -> None:
    """The exporter writes the name of a ``Sequential`` twice into the scope of its members."""
    workshop = Workshop(BERT, tmp_path)
    settings = {
        "rank.keep": 0.25,
        "embedding.rank": 8,
        "recovery.steps": 1,
        "quantization.trained": True,
    }
    candidate = SETTINGS.candidate(settings)
    plan = resolve(workshop.plans["uncut"], candidate, workshop.knowledge)
    student = first(workshop.model, workshop.family, plan, "copied")
    recovery = recovery_of(student, plan.structure, candidate, workshop.teacher, (3, 5))
    recovery.advance(1)
    [part] = recovery.finish()
    learned = part.ranges()
    factors = {"bert.embeddings.word_embeddings.1", "bert.encoder.layer.3.output.dense.1"}
    assert factors <= set(learned)
    to_onnx(student, tmp_path / "model.onnx", BATCH)
    assert set(input_ranges(tmp_path / "model.onnx", learned).values()) <= set(learned.values())

"""Bits by sensitivity: the knapsack against every other way, and what a loss feels by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress.errors import CandidateFailed
from autocompress.interfaces import Knowledge, Loss
from autocompress.knowledge.sensitivity import by_curvature, one_at_a_time, top_eigenvalue
from autocompress.quantizers.allocation import BITS, allocated
from autocompress.student import filled
from autocompress.techniques import SETTINGS, resolve
from autocompress.techniques.codes import Coded, array_of, matrices
from autocompress.testing.models import BATCH, BERT, Workshop
from autocompress.training.compute import CPU

MATRIX = "bert.encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """4 layers of 4 heads and 24 neurons, 32 wide."""
    return Workshop(BERT, tmp_path_factory.mktemp("teacher"))


def harm(sensitivities: Any, sizes: Any, bits: Any) -> float:
    return float(np.sum(sensitivities * sizes * 4.0 ** -np.array(bits)))


@pytest.mark.parametrize("seed", range(8))
def test_bits_do_the_least_harm_that_the_budget_allows(seed: int) -> None:
    """Of all ways in which what is more sensitive never gets fewer bits."""
    rng = np.random.default_rng(seed)
    sizes, felt = rng.integers(1, 9, 5) * 64, 10 ** rng.uniform(-3, 1, 5)
    mean = rng.uniform(2, 8)
    given = allocated(list(felt), list(sizes), mean)
    order = np.argsort(-felt)
    ways = [
        bits
        for bits in itertools.product(BITS, repeat=5)
        if np.dot(bits, sizes) <= mean * sizes.sum() and (np.diff(np.array(bits)[order]) <= 0).all()
    ]
    assert tuple(given) in ways
    least = min(harm(felt, sizes, bits) for bits in ways)
    assert harm(felt, sizes, given) == pytest.approx(least)


def test_the_least_budget_and_the_largest() -> None:
    """And one whose steps are too many to be told apart is met."""
    felt, sizes = [3.0, 1.0, 2.0], [64, 640, 128]
    assert allocated(felt, sizes, 2.0) == [2, 2, 2]
    assert allocated(felt, sizes, 8.0) == [8, 8, 8]
    assert allocated([0.0] * 3, sizes, 8.0) == [8, 8, 8]
    odd = [999_983 + 2 * i for i in range(40)]
    bits = allocated([1.5**i for i in range(40)], odd, 4.5)
    assert 4.4 * sum(odd) < np.dot(bits, odd) <= 4.5 * sum(odd)


def test_power_iteration_finds_the_largest_eigenvalue_of_a_quadratic() -> None:
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    for sizes in ([5.0, 4.0, 1.0, 0.5, 0.0, -3.0], [-5.0, 4.0, 3.0, 1.0, 0.0, 0.0]):
        matrix = basis @ torch.diag(torch.tensor(sizes)) @ basis.T
        point = torch.ones(6, requires_grad=True)
        [slope] = torch.autograd.grad(point @ matrix @ point / 2, point, create_graph=True)

        def product(vector: Tensor, slope: Tensor = slope, point: Tensor = point) -> Tensor:
            return torch.autograd.grad(slope, point, vector, retain_graph=True)[0]

        found = top_eigenvalue(product, torch.ones(6), tolerance=1e-6, iterations=200)
        assert found == pytest.approx(sizes[0], abs=1e-3)


def test_curvature_is_the_mean_and_the_spread_over_batches(workshop: Workshop) -> None:
    """Of losses k |w|^2 / 2 with k of 1 and 3: all eigenvalues are k."""

    def bowl(factor: float) -> Loss:
        def own(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
            weight = workshop.model.get_parameter(MATRIX)
            return float(labels[0]) * factor * weight.square().sum() / 2 + 0 * logits.sum()

        return own

    batches = [(BATCH, np.full(3, factor)) for factor in (1, 3)]
    felt = by_curvature(workshop.model, [MATRIX], batches, bowl(2.0), CPU)
    assert felt == {MATRIX: pytest.approx(2 * (2 + 1))}


def test_one_matrix_at_a_time_is_coded(workshop: Workshop) -> None:
    """The loss is the sum of a matrix: all weights less 0.5 are told; one that falls is nothing."""

    def total(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        return workshop.model.get_parameter(MATRIX).sum()

    other = MATRIX.replace("1", "2")
    weight = workshop.model.get_parameter(MATRIX)
    before = weight.detach().clone()
    ways = {MATRIX: lambda: before + 0.5, other: lambda: before + 0.5}
    batches = [(BATCH, np.zeros(3, np.int64))]
    felt = one_at_a_time(workshop.model, ways, batches, total, CPU)
    assert felt == {MATRIX: pytest.approx(0.5, rel=1e-4), other: 0.0}
    ways = {MATRIX: lambda: before - 0.5}
    assert one_at_a_time(workshop.model, ways, batches, total, CPU) == {MATRIX: 0.0}
    assert torch.equal(weight, before)


@pytest.mark.parametrize("way", ["sensitivity", "hessian"])
def test_matrices_of_a_cut_student_have_the_bits_of_their_own_layers(
    workshop: Workshop, way: str
) -> None:
    """The first layer goes, outputs are factored; bits stay within the budget, and the folder's
    codes are of so many."""
    chosen = {
        "layers.keep": (1, 3),
        "rank.keep": 0.2,
        "codes.format": "linear",
        "codes.allocation": way,
        "codes.mean_bits": 3.5,
    }
    plan = resolve(workshop.plans["uncut"], SETTINGS.candidate(chosen), workshop.knowledge)
    part = plan.part("codes")
    assert isinstance(part, Coded) and part.words() == "3.5-bit linear codes on average"
    uncut = {k: v for k, v in chosen.items() if k.startswith("codes")}
    whole = resolve(workshop.plans["uncut"], SETTINGS.candidate(uncut), workshop.knowledge)
    felt, known = dict(part.sensitivities), dict(whole.part("codes").sensitivities)  # type: ignore[union-attr]
    for mine, theirs in ((0, 1), (1, 3)):
        name = "bert.encoder.layer.{}.attention.self.query"
        assert felt[name.format(mine)] == known[name.format(theirs)]
    assert felt["classifier"] == known["classifier"] and len(felt) == len(known) - 12
    cut = workshop.family.cut(workshop.model, plan.structure)
    student = filled(cut, workshop.family, plan)
    bits = {name: quantizer.bits for name, quantizer in part.quantizers(student).items()}
    assert "bert.encoder.layer.1.output.dense.0" in bits and len(set(bits.values())) > 1
    sizes = {name: module.weight.numel() for name, module in matrices(student).items()}
    assert sum(bits[name] * sizes[name] for name in sizes) <= 3.5 * sum(sizes.values())
    for codes, (name, module) in zip(part.codes(student), matrices(student).items(), strict=True):
        assert codes.bits == bits[name] and np.array_equal(codes.decode(), array_of(module))


def test_bits_by_sensitivity_need_a_model_and_text(workshop: Workshop) -> None:
    chosen = {"codes.format": "linear", "codes.allocation": "hessian"}
    with pytest.raises(CandidateFailed, match=r"^codes\.allocation needs the model"):
        resolve(workshop.plans["uncut"], SETTINGS.candidate(chosen), Knowledge({}))

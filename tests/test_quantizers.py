"""Quantizers, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.quantizers.adaptive_float import AdaptiveFloat
from autocompress.quantizers.centroids import Centroids, clustered
from autocompress.quantizers.codes import Codes
from autocompress.quantizers.linear import Linear
from autocompress.quantizers.product import BLOCK, Product

Array = NDArray[Any]


def row(*values: float) -> NDArray[np.float32]:
    return np.array([values], np.float32)


def test_linear_rounds_to_multiples_of_the_largest_weight_over_the_most_steps() -> None:
    """3 bits are 3 steps either way, s = 0.6 / 3."""
    weight = row(0.6, -0.6, 0.29, 0.31, -0.09, 0.11)
    s = np.float32(0.6) / np.float32(3)
    expected = s * row(3, -3, 1, 2, 0, 1)
    assert Linear(3).codes(weight).decode().tobytes() == expected.tobytes()


@pytest.mark.parametrize("bits", range(2, 9))
def test_linear_is_the_formula(bits: int) -> None:
    weight = np.random.default_rng(bits).normal(size=(6, 64)).astype(np.float32)
    for group, size in (("tensor", 384), ("row", 64)):
        blocks = weight.reshape(-1, size)
        s = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
        expected = (s * np.round(blocks / s)).reshape(weight.shape)
        assert np.array_equal(Linear(bits, group).codes(weight).decode(), expected)


def test_a_group_has_its_own_scale() -> None:
    weight = np.concatenate([np.full((1, 64), 0.01), np.full((1, 64), 7)], axis=1)
    narrow = weight.astype(np.float32)
    assert np.array_equal(Linear(2, 64).codes(narrow).decode(), narrow)
    assert Linear(2, "row").codes(narrow).decode()[0, 0] == 0


def test_the_values_of_four_bits_with_two_of_the_exponent() -> None:
    """A sign, two bits of the exponent, one of the mantissa: 1.0 x 2^0 gives its place to zero. The
    largest exponent is that of max|w| = 12.5, so they end at 1.5 x 2^3, and the bias is 0; of half
    the weights it is -1."""
    values = [0, 1.5, 2, 3, 4, 6, 8, 12]
    weight = row(12.5, *values, *(-value for value in values[1:]))
    for scale in (1, 0.5, 2.0**-20):
        codes = AdaptiveFloat(4).codes(weight * np.float32(scale))
        signed = {sign * value * scale for value in values for sign in (1, -1)}
        assert set(codes.table.ravel().tolist()) == signed
        assert np.array_equal(codes.decode()[:, 1:], weight[:, 1:] * np.float32(scale))
        assert codes.decode()[0, 0] == 12 * scale


def test_adaptive_float_takes_the_nearest() -> None:
    """Below half of the smallest is zero; above the largest is the largest."""
    weight = row(15.9, 0.7, -0.8, 1.7, 1.8, -2.4, 2.6, 9.9, -10.1)
    expected = row(12, 0, -1.5, 1.5, 2, -2, 3, 8, -12)
    assert np.array_equal(AdaptiveFloat(4).codes(weight).decode(), expected)


def gaussian(count: int = 4096) -> NDArray[np.float32]:
    weight = np.random.default_rng(1).normal(0, 0.04, (8, count // 8)).astype(np.float32)
    weight[0, :3] = 0.4, -0.5, 0.3
    return weight


def log_density(weight: Array) -> Array:
    values = weight.astype(np.float64)
    mean, deviation = values.mean(), values.std()
    return np.asarray(
        -(((values - mean) / deviation) ** 2) / 2 - np.log(deviation * np.sqrt(2 * np.pi))
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("cut", [-4.0, 0.0])
def test_gobo_keeps_the_weights_below_the_cut(bits: int, cut: float) -> None:
    """Bit-equal, and no others; all others take at most 2^bits values."""
    weight = gaussian()
    outside = log_density(weight) < cut
    assert 3 <= outside.sum() < weight.size / 8
    codes = Centroids(bits, cut=cut).codes(weight)
    decoded = codes.decode()
    assert np.array_equal(codes.positions, np.flatnonzero(outside))
    assert decoded[outside].tobytes() == weight[outside].tobytes()
    assert len(np.unique(decoded[~outside])) <= 2**bits
    assert not np.isin(decoded[~outside], weight[outside]).any()


def error(values: Array, centroids: Array) -> float:
    return float(np.abs(values[:, None] - centroids).min(axis=1).sum())


@pytest.mark.parametrize("count", [4, 8, 16])
def test_centroids_lower_the_summed_error_until_no_iteration_does(count: int) -> None:
    values = np.sort(np.random.default_rng(2).standard_t(4, 1024))
    start = values.reshape(count, -1).mean(axis=1)
    centroids = clustered(values, count)
    assert error(values, centroids) < error(values, start)
    nearest = np.abs(values[:, None] - centroids).argmin(axis=1)
    once_more = np.array([values[nearest == i].mean() for i in range(count)])
    assert error(values, once_more) >= error(values, centroids)


def test_equal_populations_that_are_centroids_already_stay() -> None:
    assert clustered(np.array([1.0, 1, 2, 2, 9, 9, 10, 10]), 4).tolist() == [1, 2, 9, 10]


def test_product_codes_find_the_blocks_that_there_are() -> None:
    rng = np.random.default_rng(3)
    blocks = rng.normal(size=(4, BLOCK)).astype(np.float32)
    chosen = rng.integers(0, 4, 32)
    weight = blocks[chosen].reshape(4, -1)
    codes = Product(2).codes(weight)
    assert np.allclose(codes.decode(), weight, atol=1e-6)
    assert len(codes.indices) == weight.size / BLOCK
    with pytest.raises(ValueError, match="blocks of 4 do not divide 18 weights"):
        Product(2).codes(np.ones((3, 6), np.float32))


def test_codes_decode_by_table_scale_and_outlier() -> None:
    codes = Codes(
        (2, 3),
        2,
        np.array([0, 1, 2, 2, 1, 0], np.uint8),
        np.array([[-1], [0], [1]], np.float32),
        np.array([2, 10], np.float32),
        np.array([4], np.int32),
        np.array([0.5], np.float32),
    )
    assert codes.decode().tolist() == [[-2, 0, 2], [10, 0.5, -10]]


def test_the_commonest_values_become_the_table() -> None:
    codes = Codes.of_values(row(5, 7, 7, 3, 5, 1, 9, 9, 9), 1)
    assert codes.table.ravel().tolist() == [5, 9]
    assert codes.positions.tolist() == [1, 2, 3, 5]
    assert codes.decode().tolist() == [[5, 7, 7, 3, 5, 1, 9, 9, 9]]

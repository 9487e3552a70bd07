"""What a quantizer promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from autocompress.graphs.folding import codes_bytes
from autocompress.quantizers.codes import GROUPS, Matrix, Quantizer
from autocompress.testing.suite import Suite

_ROWS, _COLUMNS = 96, 128


class QuantizerSuite(Suite):
    """Codes decode to at most so many values, near the weights, and are found again in what they
    decoded to.

    Attributes:
        members: the quantizers' classes, by name.
        errors: by name, the largest root mean square of an error at 4 bits, as a share of the
            standard deviation of Gaussian weights; else 0.25.
    """

    members: ClassVar[Mapping[str, type[Quantizer]]] = {}
    errors: ClassVar[Mapping[str, float]] = {}

    @classmethod
    def cases(cls) -> dict[str, Sequence[tuple[str, Any]]]:
        zeros = (0.0, 0.5, 0.99, 1.0)
        made = [
            (f"{name} {bits} bits by {group}", member(bits, group))
            for name, member in cls.named().items()
            for bits in range(2, 9)
            for group in (GROUPS if member.grouped else GROUPS[:1])
        ]
        return {"made": made, "zeros": [(f"{share:.0%} zeros", share) for share in zeros]}

    def test_its_name_is_its_key(self) -> None:
        assert all(member.name == name for name, member in self.named().items())

    def test_few_values_found_again(self, made: Quantizer, zeros: float) -> None:
        """To the last bit, in no more bytes; and nothing of the weights was changed."""
        weight = weights(zeros)
        codes, before = made.codes(weight), weight.copy()
        decoded = codes.decode()
        assert decoded.shape == weight.shape and decoded.dtype == np.float32
        assert np.array_equal(weight, before) and np.isfinite(decoded).all()
        assert len(codes.table) <= 2**codes.bits and codes.bits == made.bits
        assert codes.indices.max() < len(codes.table)
        found = made.found(decoded)
        assert found.decode().tobytes() == decoded.tobytes()
        assert codes_bytes(found) <= codes_bytes(codes)

    def test_any_matrix_is_found(self, made: Quantizer) -> None:
        """In as many bytes as it takes."""
        weight = weights(0.5)
        weight[0, :2] = -0.0, np.float32(1e-40)
        assert made.found(weight).decode().tobytes() == weight.tobytes()

    def test_the_same_codes_again(self, made: Quantizer) -> None:
        first, second = made.codes(weights(0.5)), made.codes(weights(0.5))
        for key in ("indices", "table", "scales", "positions", "outliers"):
            assert getattr(first, key).tobytes() == getattr(second, key).tobytes()

    def test_more_bits_are_nearer(self, member: type[Quantizer]) -> None:
        """At 4 bits as near as it says."""
        weight = weights(0)
        errors = [
            float(np.sqrt(np.mean((member(bits).codes(weight).decode() - weight) ** 2)))
            for bits in range(2, 9)
        ]
        assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2
        assert errors[2] / weight.std() <= self.errors.get(member.name, 0.25)

    def test_weights_that_do_not_divide(self, member: type[Quantizer]) -> None:
        if member.grouped:
            with pytest.raises(ValueError, match="groups of 64 do not divide rows of 70 weights"):
                member(4, 64).codes(np.ones((2, 70), np.float32))


def weights(zeros: float) -> Matrix:
    """Gaussian, with a share of zeros."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.05, (_ROWS, _COLUMNS)).astype(np.float32)
    weight[rng.permutation(weight.size).reshape(weight.shape) < zeros * weight.size] = 0
    return weight

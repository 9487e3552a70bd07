"""AdaptivFloat: floating point of few bits, whose exponents end where the weights do.

Tambe et al. 2020, "Algorithm-Hardware Co-Design of Adaptive Floating-Point Encodings for Resilient
Deep Learning Inference", algorithm 1: one sign, exponent bits, mantissa bits; the largest exponent
is that of max|w|; there are no denormals, and the place of the smallest magnitude is zero's. How
many of the bits are of the exponent is ours, at most the 3 that the paper finds best.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from autocompress.quantizers.codes import Codes, Matrix, Quantizer

_LEAST_BIAS = -126
"""Of a scale that fp32 holds as a normal number."""


class AdaptiveFloat(Quantizer):
    """The nearest such float; an exponent bias of each group."""

    name: ClassVar[str] = "adaptive-float"
    grouped: ClassVar[bool] = True

    def codes(self, weight: Matrix) -> Codes:
        groups = self.groups(weight)
        magnitudes = self.magnitudes()
        largest = np.abs(groups).max(axis=1, keepdims=True)
        bias = np.frexp(largest)[1] - np.frexp(magnitudes[-1])[1]
        scales = np.ldexp(np.float32(1), np.maximum(bias, _LEAST_BIAS)).astype(np.float32)
        halfway = (magnitudes[1:] + magnitudes[:-1]) / 2
        nearest = np.searchsorted(halfway, np.abs(groups) / scales)
        negative = (groups < 0) & (nearest > 0)
        indices = (nearest + negative * len(magnitudes)).astype(np.uint8).ravel()
        table = np.concatenate([magnitudes, -magnitudes])[:, None]
        shape = weight.shape[0], weight.shape[1]
        if len(scales) == 1:
            return Codes(shape, self.bits, indices, table * scales)
        return Codes(shape, self.bits, indices, table, scales.ravel())

    def found(self, decoded: Matrix) -> Codes:
        codes = self.codes(decoded)
        same = np.array_equal(codes.decode().view(np.int32), decoded.view(np.int32))
        return codes if same else super().found(decoded)

    def magnitudes(self) -> Matrix:
        """Ascending, at exponent bias 0; the first is zero."""
        mantissa_bits = self.bits - 1 - min(3, self.bits // 2)
        codes = np.arange(2 ** (self.bits - 1))
        fractions = np.ldexp(np.float32(codes % 2**mantissa_bits), -mantissa_bits)
        magnitudes: Matrix = np.ldexp(1 + fractions, codes >> mantissa_bits).astype(np.float32)
        magnitudes[0] = 0
        return magnitudes

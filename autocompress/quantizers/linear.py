"""Linear quantization: whole multiples of a scale (Ganesh et al. 2021, section 3.1).

s = max|w| / (2^(bits - 1) - 1), and a weight becomes s * round(w / s), symmetric about zero.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from autocompress.quantizers.codes import Codes, Matrix, Quantizer

_ROUNDINGS = (0, 1, -1, 2, -2)
"""By how many floats a scale may be off that is computed from decoded weights."""


class Linear(Quantizer):
    """Equal steps from -max|w| to max|w| of each group."""

    name: ClassVar[str] = "linear"
    grouped: ClassVar[bool] = True

    def codes(self, weight: Matrix) -> Codes:
        groups = self.groups(weight)
        scales = self._scales(groups)
        return self._of(weight, self._steps(groups, scales), scales)

    def found(self, decoded: Matrix) -> Codes:
        groups = self.groups(decoded)
        nearest = self._scales(groups)
        scales, explained = nearest.copy(), np.zeros(len(groups), bool)
        for roundings in _ROUNDINGS:
            tried = (nearest.view(np.int32) + roundings).view(np.float32)
            again = self._steps(groups, tried) * tried[:, None]
            right = (again.view(np.int32) == groups.view(np.int32)).all(axis=1) & ~explained
            scales[right] = tried[right]
            explained |= right
        if not explained.all():
            return super().found(decoded)
        return self._of(decoded, self._steps(groups, scales), scales)

    @property
    def _most(self) -> np.float32:
        return np.float32(2 ** (self.bits - 1) - 1)

    def _scales(self, groups: Matrix) -> Matrix:
        scales: Matrix = np.abs(groups).max(axis=1) / self._most
        scales[scales == 0] = 1
        return scales

    def _steps(self, groups: Matrix, scales: Matrix) -> Matrix:
        steps = np.rint(groups / scales[:, None]) + np.float32(0)  # no negative zero
        clipped: Matrix = np.clip(steps, -self._most, self._most)
        return clipped

    def _of(self, weight: Matrix, steps: Matrix, scales: Matrix) -> Codes:
        shape = weight.shape[0], weight.shape[1]
        indices = (steps + self._most).astype(np.uint8).ravel()
        table = np.arange(-self._most, self._most + 1, dtype=np.float32)[:, None]
        if len(scales) == 1:
            return Codes(shape, self.bits, indices, table * scales)
        return Codes(shape, self.bits, indices, table, scales)

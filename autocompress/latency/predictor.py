"""Latency foretold from a table: the sum of terms of every layer, fitted to measurements of this
model's own shapes.

A layer costs an amount per head, one per FFN neuron, a step for having any of either, and a
constant for the rest of it, all by number format; what is in no layer costs a constant by format.
Neurons count in whole steps of ``ffn_step``, in which runtimes compute them.
Weights that do not fit the caches cost extra: two sizes are fitted beyond which each further byte
has a price. Nothing costs less than zero. Everything is relative to the latency of the uncut fp32
model, which is timed in turn with each measurement, so a table holds while the machine's speed
drifts. Measured trials join the table as they come and count twice, so a table that is off is set
right.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate
from autocompress.formats import FORMATS, layer_formats
from autocompress.plan import Plan
from autocompress.structure import ffn_step

MOST_MEASUREMENTS = 50
LEAST_MARGIN = 0.1
"""A candidate is refused unseen only when it is predicted to miss a limit by more than this
share."""
_TRIAL_WEIGHT = 2.0
_LEAST_ROWS = 4
"""Measurements that hold what a part adds, below which nothing is foretold of it."""
_SHARES = (
    (1, 1, 1),
    (0, 1, 1),
    (1, 0.25, 1),
    (1, 1, 0.125),
    (0.5, 0, 0.5),
    (0.5, 0.5, 0),
    (0.34, 0.25, 0.125),
    (0.5, 0.5, 0.5),
    (0, 0.5, 0.5),
    (0.67, 0.25, 0.25),
)
"""Of the layers, heads and FFN neurons of each probe, in order of what they tell; of the layers at
least one."""
_SMALL_CACHES_MB = (0.25, 0.5, 1.0, 2.0, 4.0)
_LARGE_CACHES_MB = (8.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(frozen=True)
class Shape:
    """What a latency depends on.

    Args:
        layers: (heads, FFN neurons, number format) of each.
        rest: number format of everything that is in no layer.
        extra: what parts of the plan add, amounts by name, in order of the names.
    """

    layers: tuple[tuple[int, int, str], ...]
    rest: str
    extra: tuple[tuple[str, float], ...] = ()


def shape_of(plan: Plan, candidate: Candidate) -> Shape:
    """The shape that a candidate gives a plan; weights in blocks count as a format by the size of
    the block.

    Raises:
        CandidateFailed: the candidate's number formats do not fit the structure.
    """
    block = candidate.get("quantization.block_size", 0)
    structure = plan.structure

    def format_of(scheme: str) -> str:
        return f"{scheme}/{block}" if FORMATS[scheme].in_blocks else scheme

    schemes = list(map(format_of, layer_formats(candidate, len(structure.layers))))
    layers = zip(structure.head_counts, structure.ffn_widths, schemes, strict=True)
    extra: dict[str, float] = {}
    for part in plan.parts:
        for i, (layer, scheme) in enumerate(zip(structure.layers, schemes, strict=True)):
            for term, amount in part.terms(i, layer).items():
                name = f"{part.technique} {term} {scheme}"
                extra[name] = extra.get(name, 0.0) + amount
    rest = format_of(candidate.text("quantization.scheme", "fp32"))
    told = ((name, amount) for name, amount in sorted(extra.items()) if amount)
    return Shape(tuple(layers), rest, tuple(told))


def probes(layers: int, heads: int, ffn: int, formats: Sequence[str]) -> list[Shape]:
    """Shapes to measure, at most 50: for each format the whole model, a single layer, few heads, a
    narrow FFN, and mixtures."""
    each = min(len(_SHARES), MOST_MEASUREMENTS // len(formats))
    return list(
        dict.fromkeys(
            Shape(((round(h * heads), round(f * ffn), name),) * max(1, round(depth * layers)), name)
            for name in formats
            for depth, h, f in _SHARES[:each]
        )
    )


@dataclass
class LatencyTable:
    """Measured shapes of one model on one device under one workload.

    Args:
        rows: shapes, and their latency relative to the uncut fp32 model.
        weights: how many a head has, and an FFN neuron.
        trials: those of the search, as ``rows``.
    """

    rows: list[tuple[Shape, float]]
    weights: tuple[float, float]
    trials: list[tuple[Shape, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        widths = [ffn for shape, _ in self.rows for _, ffn, _ in shape.layers]
        self.step = ffn_step(max(widths, default=0))
        self.formats = {shape.rest for shape, _ in self.rows}
        self.formats |= {name for shape, _ in self.rows for _, _, name in shape.layers}
        self._fit()

    def add(self, shape: Shape, relative: float) -> None:
        """A measured trial; the table is fitted anew."""
        self.trials.append((shape, relative))
        self._fit()

    def predict(self, shape: Shape) -> float:
        """Latency relative to the uncut fp32 model.

        Raises:
            KeyError: a number format, or a part's term, that the table has not seen.
        """
        return float(self._terms(shape, self.caches) @ self.costs)

    def knows(self, shape: Shape) -> bool:
        """Whether all of a shape's number formats are in the rows, and what parts add to it often
        enough in rows and trials to tell its cost."""
        formats = {shape.rest, *(name for _, _, name in shape.layers)}
        known = all(self.extra_rows.get(name, 0) >= _LEAST_ROWS for name, _ in shape.extra)
        return known and formats <= self.formats

    def errors(self) -> NDArray[np.float64]:
        """Relative error of each row and trial foretold from all the others, signed; infinite for
        one that alone tells a cost.

        By the leverages of the linear fit, the sizes of the caches and the costs set to zero taken
        as they are (Hastie et al. 2009, The Elements of Statistical Learning, section 7.10.3).
        """
        return self._errors

    @property
    def margin(self) -> float:
        """Share by which a limit must be foretold to be missed to be taken for missed."""
        return max(LEAST_MARGIN, 3 * float(np.median(np.abs(self._errors))))

    def _fit(self) -> None:
        seen = [*self.rows, *self.trials]
        formats = sorted(
            {shape.rest for shape, _ in seen}
            | {layer[2] for shape, _ in seen for layer in shape.layers}
        )
        self.columns = {name: i for i, name in enumerate(formats)}
        terms = [name for shape, _ in seen for name, amount in shape.extra if amount]
        self.extra_rows = Counter(terms)
        self.extra_columns = {name: i for i, name in enumerate(sorted(self.extra_rows))}
        counts = np.array([1.0] * len(self.rows) + [_TRIAL_WEIGHT] * len(self.trials))
        shares = counts / [relative for _, relative in seen]
        fits = []
        for caches in itertools.product(_SMALL_CACHES_MB, _LARGE_CACHES_MB):
            matrix = np.array([self._terms(shape, caches) for shape, _ in seen]) * shares[:, None]
            costs = _least_squares(matrix, counts, free=len(self.extra_columns))
            fits.append((float(np.square(matrix @ costs - counts).sum()), caches, costs, matrix))
        _, self.caches, self.costs, matrix = min(fits, key=lambda fit: fit[0])
        own = 1 - _leverages(matrix[:, self.costs != 0])
        with np.errstate(divide="ignore", invalid="ignore"):
            self._errors = np.where(own > 1e-6, (matrix @ self.costs / counts - 1) / own, np.inf)

    def _terms(self, shape: Shape, caches: tuple[float, float]) -> NDArray[np.float64]:
        terms = np.zeros((len(self.columns), 6))
        terms[self.columns[shape.rest], 0] = 1
        megabytes = 0.0
        for heads, ffn, name in shape.layers:
            neurons = -(-ffn // self.step) * self.step
            terms[self.columns[name]] += (0, 1, heads > 0, heads, ffn > 0, neurons)
            megabytes += (
                FORMATS[name.partition("/")[0]].bytes
                * (heads * self.weights[0] + ffn * self.weights[1])
                / 1e6
            )
        extra = np.zeros(len(self.extra_columns))
        for name, amount in shape.extra:
            if amount:
                extra[self.extra_columns[name]] = amount
        over = [max(0.0, megabytes - size) for size in caches]
        return np.concatenate([terms.ravel(), over, extra])


def _leverages(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each row draws its own fitted value, 0 to 1."""
    left, sizes, _ = np.linalg.svd(
        matrix / np.maximum(np.abs(matrix).max(axis=0), 1e-12), full_matrices=False
    )
    leverages: NDArray[np.float64] = np.square(left[:, sizes > 1e-6 * sizes[0]]).sum(axis=1)
    return leverages


def _least_squares(
    matrix: NDArray[np.float64], target: NDArray[np.float64], free: int
) -> NDArray[np.float64]:
    """Costs, the most negative set to zero until none is.

    Args:
        free: so many columns at the end may have gains for costs.
    """
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
    costs, active = np.zeros(matrix.shape[1]), np.abs(matrix).max(axis=0) > 0
    bound = np.arange(matrix.shape[1]) < matrix.shape[1] - free
    while active.any():
        solution = np.linalg.lstsq(matrix[:, active] / scale[active], target, rcond=1e-6)[0]
        negative = np.where(bound[active], solution, 0.0)
        if negative.min() >= 0:
            costs[active] = solution / scale[active]
            break
        active[np.flatnonzero(active)[negative.argmin()]] = False
    return costs

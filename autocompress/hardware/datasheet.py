"""A device that is not at hand: latency estimated from published peaks (roofline, Williams et al.
2009).

Every product with weights takes the longer of its arithmetic and of reading its weights; every
operator adds what starting it costs. Attention takes the longer of its arithmetic and of reading
the cache. Elementwise work is left out. An estimate may rank candidates; it is never called a
measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.artifact import bytes_in_torch, onnx_file, scheme_of
from autocompress.errors import CandidateFailed, UserError
from autocompress.formats import FORMATS
from autocompress.graphs.reading import Attention, Product, attention, has_cache, operations
from autocompress.hardware.onnx_device import answers_here
from autocompress.hardware.profile import HardwareProfile, Peaks, precision_of
from autocompress.hardware.timing import in_phases
from autocompress.interfaces import Question
from autocompress.scores import Latency, Timing

Pass = tuple[int, int]
"""(tokens that are read, tokens that each of them sees)."""


class DatasheetDevice:
    """A ``Device`` known from published peaks; answers are those of this machine."""

    answers_like = "local onnxruntime-cpu"

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
        assert profile.peaks is not None
        self.profile, self.lengths, self.peaks = profile, tuple(lengths), profile.peaks
        self.fingerprint: dict[str, Any] = {"source": profile.source, "date": profile.date}

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        alone = "fp32" if models else self._precision(baseline)
        pairs = [(baseline, alone), *((path, self._precision(path)) for path in models)]
        if has_cache(onnx_file(baseline)):
            phases = self.profile.phases(final)
            first, *rest = in_phases(
                {phase: self._timings(pairs, self._passes(phase), 1) for phase in phases}
            )
        else:
            self.profile.check_not_generating()
            passes = [(length, length) for length in self.lengths]
            first, *rest = self._timings(pairs, passes, len(passes))
        return first, rest

    def predict(self, model: Path, batches: Sequence[Question]) -> NDArray[np.floating[Any]]:
        return answers_here(model, batches)

    def close(self) -> None: ...

    def _passes(self, phase: str) -> list[Pass]:
        """What a phase of a language model takes."""
        workload = self.profile.generation(self.lengths)
        prompt, context = workload["prompt_length"], workload["context_length"]
        rest = [(1, prompt + i) for i in range(1, workload["generated_tokens"])]
        whole = (prompt, prompt)
        return {"prefill": [whole], "decode": [(1, context + 1)], "end-to-end": [whole, *rest]}[
            phase
        ]

    def _timings(
        self, pairs: Sequence[tuple[Path, str]], passes: Sequence[Pass], inferences: int
    ) -> list[Timing]:
        """A timing per model and its number format.

        Args:
            inferences: that the passes are in all.
        """
        estimates = [
            self._estimate(path, precision, passes, inferences) for path, precision in pairs
        ]
        return [
            Timing(
                Latency(ms, ms, ms, (ms, ms), 0, "estimate", basis="datasheet"),
                estimates[0][0] / ms,
                (estimates[0][0] / ms, estimates[0][0] / ms),
                precision,
                memory_bytes=held,
                weight_bytes=held if self.profile.runtime == "torch-cuda" else None,
            )
            for ms, precision, held in estimates
        ]

    def _precision(self, path: Path) -> str:
        scheme = scheme_of(path)
        return (
            precision_of(scheme, self.profile)
            if self.profile.runtime == "torch-cuda"
            else FORMATS[scheme].stored
        )

    def _estimate(
        self, path: Path, precision: str, passes: Sequence[Pass], inferences: int
    ) -> tuple[float, str, int]:
        """Milliseconds, the number format, and the bytes of the weights."""
        profile, file = self.profile, onnx_file(path)
        try:
            (products, operators), attending = operations(file), attention(file)
        except UserError as error:
            raise CandidateFailed(str(error)) from error
        held = file.stat().st_size
        if profile.runtime == "torch-cuda":
            products = [Product(product.weights, precision) for product in products]
            held = bytes_in_torch(path, precision)
        ms = [
            roofline_ms(
                products, operators, self.peaks, profile.threads, profile.batch_size * tokens
            )
            + self._attention_ms(attending, precision, tokens, seen)
            for tokens, seen in passes
        ]
        return sum(ms) / inferences, precision, held

    def _attention_ms(self, attending: Attention, precision: str, tokens: int, seen: int) -> float:
        """Milliseconds of all layers' attention in one pass: two products, in floats whatever the
        weights are, and what the cache holds of earlier tokens."""
        profile, peaks = self.profile, self.peaks
        floats = precision if precision in ("fp16", "bf16") else "fp32"
        gops = peaks.gops.get(floats, peaks.gops["fp32"]) * peaks.efficiency * profile.threads
        arithmetic = 4 * attending.width * profile.batch_size * tokens * seen / (gops * 1e9)
        cached = attending.cached * profile.batch_size * (seen - tokens) * FORMATS[floats].bytes
        return 1e3 * max(arithmetic, cached / (peaks.memory_gb_per_s * 1e9))


def roofline_ms(
    products: Sequence[Product], operators: int, peaks: Peaks, threads: int, tokens: int
) -> float:
    """Milliseconds of one inference of so many tokens, without its attention."""
    seconds = operators * peaks.overhead_us * 1e-6
    for product in products:
        gops = peaks.gops.get(product.scheme, peaks.gops["fp32"]) * peaks.efficiency * threads
        arithmetic = 2 * product.weights * tokens / (gops * 1e9)
        reading = product.weights * FORMATS[product.scheme].bytes / (peaks.memory_gb_per_s * 1e9)
        seconds += max(arithmetic, reading)
    return 1e3 * seconds

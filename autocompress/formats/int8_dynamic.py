"""8-bit integers, the range of the activations found as the model runs (Ganesh et al. 2021, section
3.1): weights by channel; in causal models activations with a scale for each token."""

from __future__ import annotations

from autocompress.interfaces import Conversion, Format


def _convert(given: Conversion) -> None:
    from autocompress.graphs import runtime

    if given.by_token:
        runtime.quantize_int8_by_token(given.source, given.target, given.spared)
    else:
        runtime.quantize_dynamic_int8(given.source, given.target, spared=given.spared)


FORMAT = Format(
    "int8-dynamic",
    bytes=1.0,
    stored="int8-dynamic",
    gains=("onnxruntime-cpu",),
    convert=_convert,
    more_bits="fp32",
)

"""8-bit integers, the range of the activations fixed beforehand (Ganesh et al. 2021, section 3.1):
learned in training where it was, else seen on the calibration batches; weights by channel."""

from __future__ import annotations

from autocompress.interfaces import Conversion, Format


def _convert(given: Conversion) -> None:
    from autocompress.graphs.reading import input_ranges
    from autocompress.graphs.runtime import quantize_static_int8

    learned = input_ranges(given.source, given.ranges) if given.ranges else {}
    quantize_static_int8(given.source, given.target, given.calibration, given.spared, learned)


FORMAT = Format(
    "int8-static",
    bytes=1.0,
    stored="int8-static",
    gains=("onnxruntime-cpu",),
    convert=_convert,
    more_bits="fp32",
)

"""Number formats of the exported graph. A member is one file here, one line in ``FORMATS`` and one
row in the conformance test.

Under int8 and int4 the embedding gets 8 bits: it is more sensitive than the layers (Shen et al.
2020); so does a head that is tied to it, from the same table. Layers may be spared: they keep more
bits than the others, as in the mixed precision of the same paper.

This page imports neither torch nor onnxruntime; the conversions do when they run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, OneOf, Setting, Settings
from autocompress.errors import CandidateFailed, UserError
from autocompress.formats import (
    bf16,
    fp16,
    fp32,
    int4_weights,
    int8_dynamic,
    int8_static,
    int8_weights,
)
from autocompress.formats.sparing import LayersSpared, layers_spared
from autocompress.interfaces import Conversion, Format

if TYPE_CHECKING:
    from autocompress.search_space import Parameter

FORMATS: dict[str, Format] = {
    "fp32": fp32.FORMAT,
    "fp16": fp16.FORMAT,
    "bf16": bf16.FORMAT,
    "int8-dynamic": int8_dynamic.FORMAT,
    "int8-static": int8_static.FORMAT,
    "int8-weights": int8_weights.FORMAT,
    "int4-weights": int4_weights.FORMAT,
}

FORMAT_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "quantization.scheme",
        OneOf(tuple(FORMATS)),
        "fp32",
        "number format of the exported model",
    ),
    Setting(
        "quantization.block_size",
        OneOf((32, 128)),
        32,
        "weights that share a scale",
        when=lambda s: FORMATS[str(s["quantization.scheme"])].in_blocks,
    ),
    Setting(
        "quantization.spared",
        LayersSpared(),
        "none",
        "layers that keep more bits",
        when=lambda s: FORMATS[str(s["quantization.scheme"])].more_bits is not None,
    ),
)
_SETTINGS = Settings(FORMAT_SETTINGS)


def sped_up_by(runtime: str) -> tuple[str, ...]:
    """The formats that a runtime is known to speed up on some device, and fp32."""
    return tuple(name for name, known in FORMATS.items() if runtime in known.gains)


def words(settings: Mapping[str, Any]) -> str:
    """The number format of a candidate, such as ``int4-weights/32, spared ends``.

    Args:
        settings: of the candidate, as ``Candidate.as_dict`` gives them.
    """
    name = settings.get("quantization.scheme", "fp32")
    block = settings.get("quantization.block_size", 32) if FORMATS[name].in_blocks else None
    spared = settings.get("quantization.spared", "none")
    return (f"{name}/{block}" if block else name) + (
        f", spared {spared}" if spared != "none" else ""
    )


def choices(parameters: Iterable[Parameter]) -> list[Candidate]:
    """Every number format that a search space allows, in its order, as candidates of nothing else.

    Args:
        parameters: of the space; a setting that is not among them has its default.
    """
    searched: dict[str, Any] = {parameter.name: parameter.values for parameter in parameters}
    values = [
        searched[setting.name].values if setting.name in searched else (setting.default,)
        for setting in FORMAT_SETTINGS
    ]
    names = [setting.name for setting in FORMAT_SETTINGS]
    candidates = (
        _SETTINGS.candidate(dict(zip(names, chosen, strict=True)))
        for chosen in itertools.product(*values)
    )
    return list(dict.fromkeys(candidates))


def layer_formats(candidate: Candidate, layers: int) -> tuple[str, ...]:
    """The number format of each kept layer.

    Args:
        layers: how many layers are kept.

    Raises:
        CandidateFailed: a spared layer that the model does not have.
    """
    name = candidate.text("quantization.scheme", "fp32")
    spared = layers_spared(candidate.get("quantization.spared", "none"), layers)
    more = FORMATS[name].more_bits or name
    return tuple(more if i in spared else name for i in range(layers))


def convert(
    source: Path,
    target: Path,
    candidate: Candidate,
    calibration: Sequence[Mapping[str, NDArray[np.int64]]],
    *,
    by_token: bool = False,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Write the graph that ships; tensors that hold the same are stored once.

    Args:
        source: fp32 ONNX file.
        target: file to write.
        calibration: model inputs from the training split, name to (batch, length); read by
            ``int8-static`` only.
        by_token: whether dynamic int8 has a scale of activations for each token, as causal models
            need it.
        ranges: torch module, such as ``bert.pooler.dense``, to the least and the largest number
            that goes into its product, as training has learned them: under ``int8-static`` they
            take the place of those seen on the calibration batches. Where one tensor goes into
            several modules, it has the range that holds all of theirs.

    Returns:
        ``{"scheme": ..., "layers": [scheme of each], "left_in_fp32": {tensor: bytes}}``.

    Raises:
        CandidateFailed: the graph cannot be converted, has no such layer as is to be spared, or no
            product of a module that has a range.
    """
    from autocompress.graphs import reading
    from autocompress.graphs.edit import merge_equal_initializers
    from autocompress.graphs.runtime import quantize_tied_table

    name = candidate.text("quantization.scheme", "fp32")
    layers = layer_formats(candidate, reading.layer_count(source))
    chosen, tied = FORMATS[name], target.with_suffix(".tied.onnx")
    try:
        is_tied = chosen.bytes <= 1 and quantize_tied_table(source, tied)
        chosen.convert(
            Conversion(
                tied if is_tied else source,
                target,
                calibration,
                by_token,
                int(candidate.number("quantization.block_size", 0)),
                frozenset(i for i, own in enumerate(layers) if own != name),
                ranges or {},
            )
        )
    except (UserError, ValueError, RuntimeError, KeyError) as error:
        raise CandidateFailed(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        tied.unlink(missing_ok=True)
    merge_equal_initializers(target)
    left = {} if chosen.stored == "fp32" else reading.float_weight_bytes(target)
    return {"scheme": name, "layers": list(layers), "left_in_fp32": left}

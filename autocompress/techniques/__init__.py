"""Compression techniques. A member is one file here, one line in a table below and one row in the
conformance test.

Structural techniques apply in the order of ``TECHNIQUES``; quantization converts the exported graph
at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autocompress.candidate import Candidate, Settings
from autocompress.distillation.settings import RECOVERY_SETTINGS
from autocompress.interfaces import Knowledge, Technique
from autocompress.structure import Importance, Structure
from autocompress.techniques.initialization import INITIALIZATION_SETTINGS
from autocompress.techniques.latency_pruning import LatencyPruning
from autocompress.techniques.layer_truncation import LayerTruncation
from autocompress.techniques.quantization import QUANTIZATION_SETTINGS
from autocompress.techniques.unit_pruning import UnitPruning

TECHNIQUES: tuple[Technique, ...] = (
    LayerTruncation(),
    LatencyPruning(),
    UnitPruning("head-pruning", "heads", "attention heads"),
    UnitPruning("ffn-pruning", "ffn", "FFN neurons"),
)

SETTINGS = Settings(
    *(technique.settings for technique in TECHNIQUES),
    INITIALIZATION_SETTINGS,
    RECOVERY_SETTINGS,
    QUANTIZATION_SETTINGS,
)
"""Every setting a candidate may have."""


def resolve(
    full: Structure,
    candidate: Candidate,
    importance: Mapping[str, Importance],
    latency: Callable[[Structure], float] | None = None,
) -> Structure:
    """What the candidate leaves of a model.

    Args:
        importance, latency: see ``Knowledge``.

    Raises:
        CandidateFailed: the settings do not fit this model.
    """
    structure, knowledge = full, Knowledge(importance, latency)
    for technique in TECHNIQUES:
        structure = technique.refine(structure, candidate, knowledge)
    return structure

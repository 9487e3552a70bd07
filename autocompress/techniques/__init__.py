"""Compression techniques. A member is one file here, one line in a table below and one row in the conformance test.

Structural techniques apply in the order of ``TECHNIQUES``; quantization converts the exported graph at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.candidate import Candidate, Settings
from autocompress.distillation.settings import RECOVERY_SETTINGS
from autocompress.interfaces import Technique
from autocompress.structure import Importance, Structure
from autocompress.techniques.layer_truncation import LayerTruncation
from autocompress.techniques.quantization import QUANTIZATION_SETTINGS
from autocompress.techniques.unit_pruning import UnitPruning

TECHNIQUES: tuple[Technique, ...] = (
    LayerTruncation(),
    UnitPruning("head-pruning", "heads", "attention heads"),
    UnitPruning("ffn-pruning", "ffn", "FFN neurons"),
)

SETTINGS = Settings(*(technique.settings for technique in TECHNIQUES), RECOVERY_SETTINGS, QUANTIZATION_SETTINGS)
"""Every setting a candidate may have."""


def resolve(full: Structure, candidate: Candidate, importance: Mapping[str, Importance]) -> Structure:
    """What the candidate leaves of a model.

    Raises:
        CandidateFailed: the settings do not fit this model.
    """
    structure = full
    for technique in TECHNIQUES:
        structure = technique.refine(structure, candidate, importance)
    return structure

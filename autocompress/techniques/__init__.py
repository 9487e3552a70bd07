"""Compression techniques. A member is one file here, one line in ``TECHNIQUES`` and one row in the
conformance test; see ``interfaces.Technique``.

They apply in the order of the table, each to what the one before it left: layers, then units, then
what is made of the matrices that are left.
"""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.candidate import Candidate, Settings
from autocompress.distillation.settings import RECOVERY_SETTINGS
from autocompress.formats import FORMAT_SETTINGS
from autocompress.interfaces import Knowledge, Technique
from autocompress.plan import Plan
from autocompress.techniques.codes import Coding
from autocompress.techniques.embedding_codes import EmbeddingCoding
from autocompress.techniques.embedding_rank import EmbeddingRank
from autocompress.techniques.hidden_size import HiddenSize
from autocompress.techniques.initialization import INITIALIZATION_SETTINGS
from autocompress.techniques.int8_training import Int8Training
from autocompress.techniques.latency_pruning import LatencyPruning
from autocompress.techniques.layer_truncation import LayerTruncation
from autocompress.techniques.low_rank import LowRankOutputs
from autocompress.techniques.sharing import Sharing
from autocompress.techniques.sparsity import Sparsity
from autocompress.techniques.unit_pruning import UnitPruning
from autocompress.techniques.vocabulary import SmallerVocabulary

TECHNIQUES: tuple[Technique, ...] = (
    LayerTruncation(),
    LatencyPruning(),
    UnitPruning("head-pruning", "heads", "attention heads"),
    UnitPruning("ffn-pruning", "ffn", "FFN neurons"),
    HiddenSize(),
    LowRankOutputs(),
    SmallerVocabulary(),
    EmbeddingRank(),
    Sharing(),
    Sparsity(),
    Int8Training(),
    EmbeddingCoding(),
    Coding(),
)

FORMAT_NAMES = tuple(setting.name for setting in FORMAT_SETTINGS)
"""What a sealed student is converted by; all other settings make the student."""


def vocabulary(techniques: Sequence[Technique] = TECHNIQUES) -> Settings:
    """Every setting that a candidate of these techniques may have, in order of application."""
    return Settings(
        *(technique.settings for technique in techniques),
        INITIALIZATION_SETTINGS,
        RECOVERY_SETTINGS,
        FORMAT_SETTINGS,
    )


SETTINGS = vocabulary()
"""Of the techniques that ship."""

_RECOVERY = tuple(s.name for s in (*INITIALIZATION_SETTINGS, *RECOVERY_SETTINGS))


def resolve(
    full: Plan,
    candidate: Candidate,
    knowledge: Knowledge,
    techniques: Sequence[Technique] = TECHNIQUES,
) -> Plan:
    """What the candidate makes of a model.

    Args:
        full: the uncut model's.

    Raises:
        CandidateFailed: the settings do not fit this model.
    """
    plan = full
    for technique in techniques:
        plan = technique.plan(plan, candidate, knowledge)
    return plan


def training_of(candidate: Candidate, techniques: Sequence[Technique] = TECHNIQUES) -> Candidate:
    """What a student's weights depend on beside its plan: how they begin, its recovery, and what
    trains along."""
    along = [
        setting.name
        for technique in techniques
        if type(technique).modifier is not Technique.modifier
        for setting in technique.settings
    ]
    return candidate.only((*_RECOVERY, *along))

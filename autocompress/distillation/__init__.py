"""Distillation: losses that pull a student towards its teacher.

An objective is one file here, one name in ``settings.OBJECTIVES``, one line in ``objectives`` and
one row in the conformance test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress.interfaces import Lesson, Objective


def objectives() -> dict[str, Callable[[Lesson], Objective]]:
    """All objectives by name, to be made for a lesson; imports torch."""
    from autocompress.distillation.adversarial_logits import AdversarialLogits
    from autocompress.distillation.annealed_logits import AnnealedLogits
    from autocompress.distillation.attention_maps import AttentionMaps
    from autocompress.distillation.cosine import Cosine
    from autocompress.distillation.hidden_states import HiddenStates
    from autocompress.distillation.logits import Logits
    from autocompress.distillation.normalized_hidden_states import NormalizedHiddenStates
    from autocompress.distillation.random_layers import RandomLayers
    from autocompress.distillation.value_relations import ValueRelations

    return {
        "logits": Logits,
        "hidden-states": HiddenStates,
        "normalized-hidden-states": NormalizedHiddenStates,
        "cosine": Cosine,
        "attention-maps": AttentionMaps,
        "value-relations": ValueRelations,
        "random-layers": RandomLayers,
        "adversarial-logits": AdversarialLogits,
        "annealed-logits": AnnealedLogits,
    }

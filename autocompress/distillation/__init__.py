"""Distillation: losses that pull a student towards its teacher.

An objective is one file here, one name in ``settings.OBJECTIVES``, one line in ``objectives`` and one row in the
conformance test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress.interfaces import Objective


def objectives() -> dict[str, Objective]:
    """All objectives by name; imports torch."""
    from autocompress.distillation.attention_maps import AttentionMaps
    from autocompress.distillation.hidden_states import HiddenStates
    from autocompress.distillation.logits import Logits
    from autocompress.distillation.value_relations import ValueRelations

    members: tuple[Objective, ...] = (Logits(), HiddenStates(), AttentionMaps(), ValueRelations())
    return {member.name: member for member in members}

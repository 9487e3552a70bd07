"""Model families: where the layers, heads and FFN neurons of a model type lie.

A family is one file here, one line in ``FAMILIES`` and one row in the conformance test.
"""

from __future__ import annotations

from autocompress.errors import UserError
from autocompress.families import bert, distilbert, gpt2, llama, mistral, qwen2, roberta
from autocompress.interfaces import Family

FAMILIES: dict[str, Family] = {
    "bert": bert.FAMILY,
    "roberta": roberta.FAMILY,
    "distilbert": distilbert.FAMILY,
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
}
"""By the ``model_type`` of a transformers config."""


def family_of(model_type: str) -> Family:
    """The family of a model type.

    Raises:
        UserError: a model type that autocompress cannot cut.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"model type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]

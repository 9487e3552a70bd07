"""What a search takes where it is told a model and data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from autocompress.errors import UserError
from autocompress.families import family_of
from autocompress.tasks import TASKS
from autocompress.training.teacher import load_config

_TASK_OF_HEAD = {
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "language-modeling",
    "LMHeadModel": "language-modeling",
}
SMALL_DECODER = 50_000_000
"""Parameters up to which a decoder's width is searched too; a larger one is cut in depth alone."""


def of_model(model: str) -> tuple[str, str]:
    """The task of a model's head, and the shipped space for its family and size.

    Raises:
        UserError: no such model, one that cannot be cut, or a decoder whose head tells no task.
    """
    config = load_config(model)
    if not family_of(config.model_type).causal:
        return "text-classification", "encoder"
    small = _parameters(config) <= SMALL_DECODER
    return _task(model, config), "decoder" if small else "decoder-depth"


def _task(model: str, config: Any) -> str:
    if Path(model).suffix == ".gguf":
        return "language-modeling"
    for name in config.architectures or ():
        for head, task in _TASK_OF_HEAD.items():
            if name.endswith(head):
                return task
    raise UserError(
        f"--model {model} has no head that tells its task: give --task, one of {', '.join(TASKS)}"
    )


def _parameters(config: Any) -> int:
    auto: Any = AutoModel
    with torch.device("meta"):
        model = auto.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())

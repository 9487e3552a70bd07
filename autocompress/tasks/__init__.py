"""Tasks: what a model is scored on. A task is one file here, one line in ``TASKS`` and one row in
its conformance test. Files here import torch where they need it only: the command line reads
them."""

from __future__ import annotations

from autocompress.interfaces import Option, TaskKind
from autocompress.tasks import language_modeling, text_classification

TASKS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (
        text_classification.KIND,
        language_modeling.KIND,
    )
}
"""By name."""
OPTIONS: dict[str, Option] = {
    option.name: option for kind in TASKS.values() for option in kind.options
}
"""Of all tasks, by name; one that several tasks have is the same in each."""

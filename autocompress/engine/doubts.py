"""What a reader of the scores should doubt: held-out text that the model may have learned before,
and lengths that are timed but are not the task's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from autocompress import resources
from autocompress.cores import reserved
from autocompress.engine.scoring import torch_answer
from autocompress.errors import CandidateFailed
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import HeldOut, Task
from autocompress.training.compute import Compute

SAMPLE_BATCHES = 8
"""Of training examples and of validation examples, which are answered to compare them: what a few
training steps cost."""
_FEWEST = 10
"""Training examples that a score says something of."""
_APART = 2.0
"""Factor between the tokens that are timed and those of the task's median text."""


def of_lengths(profiles: Sequence[HardwareProfile], task: Task) -> list[str]:
    """Where a device times other lengths than the task has."""
    median = task.reading.median_tokens
    said = []
    for profile in profiles:
        length = profile.sequence_length
        if task.head.generates or not isinstance(length, int):
            continue
        if max(length, median) >= _APART * min(length, median):
            own = f"{profile.name.removesuffix(f'-seq{length}')}-task"
            known = own in resources.names("hw_profiles")
            said.append(
                f"{profile.name} times texts of {length} tokens, the median text has {median:g}: "
                + (own if known else 'a profile with sequence_length = "task"')
                + " times the task's own lengths"
            )
    return said


def of_text_seen(source: str, task: Task, model: nn.Module, compute: Compute) -> list[str]:
    """Where held-out text was cut from what the user's own model may have been trained on. The
    symptom is in answers to training and validation text; the test split stays closed.

    Args:
        source: that the splits were cut from.
        model: as the user gave it.
    """
    cut = task.reading.cut
    if not cut:
        return []
    said = [
        f"{' and '.join(cut)} {'are' if len(cut) > 1 else 'is'} cut from {source}: where the model "
        f"was trained on that text its scores are too good, give "
        f"{' and '.join(f'--{name}' for name in cut)} that it has not seen"
    ]
    most = SAMPLE_BATCHES * task.batch_size
    places = np.linspace(0, len(task.validation.rows) - 1, min(most, len(task.validation.rows)))
    held_out, known = task.validation.take([int(place) for place in places]), task.learned(most)
    if len(known.rows) < _FEWEST:
        return said
    try:
        with reserved():
            model.to(compute.device)
            learned, learned_stderr = _score(task, known, model, compute)
            new, new_stderr = _score(task, held_out, model, compute)
    except CandidateFailed:
        return said
    finally:
        model.cpu()
    metric = task.metric
    gap = metric.change(new - learned)
    worse = gap > 2 * math.hypot(learned_stderr, new_stderr)
    figures = (
        f"the model's {metric.name} is {metric.text(learned)} on training text and "
        f"{metric.text(new)} on validation text"
    )
    if "validation" in cut and not worse:
        said.append(f"{figures}, no worse on what should be new to it: it has seen both or neither")
    if "validation" not in cut and worse:
        said.append(f"{figures}: it has learned the text that the test split is cut from")
    return said


def _score(task: Task, part: HeldOut, model: nn.Module, compute: Compute) -> tuple[float, float]:
    answers = [
        torch_answer(model, question, compute) for question in task.questions(part, task.batch_size)
    ]
    return task.score(task.evidence(np.concatenate(answers), part), part)

"""Tasks: what a model is scored on. A task is one file here, one line in ``TASKS``, one in
``session.LOADERS`` and one row in its conformance test."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.pareto import METRICS, Metric


@dataclass(frozen=True)
class Kind:
    """What is known of a task before any data is read.

    Args:
        options: of a request that mean something to this task only.
    """

    metric: Metric
    options: tuple[str, ...]


TASKS: dict[str, Kind] = {
    "text-classification": Kind(
        METRICS["accuracy"], ("text-pair-column", "label-column", "unlabeled")
    ),
    "language-modeling": Kind(METRICS["perplexity"], ("block-length", "context", "stride")),
}
"""By name; each is a module of this package."""

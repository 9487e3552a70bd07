"""Tasks: what a model is scored on. A task is one file here, one line in ``TASKS`` and one row in its conformance test."""

TASKS: tuple[str, ...] = ("text-classification",)
"""The tasks; each is a module of this package."""

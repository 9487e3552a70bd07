"""The libraries around: the versions that a measurement depends on, and their chatter."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("autocompress", "torch", "transformers", "onnx", "onnxruntime", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Version by package; packages that are not installed are left out."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


@contextmanager
def silenced(*libraries: str) -> Iterator[None]:
    """Nothing but errors is logged by these libraries inside the block."""
    loggers = [logging.getLogger(library) for library in libraries]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

"""The library versions that a measurement depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("autocompress", "torch", "transformers", "onnx", "onnxruntime", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Version by package; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

"""What a measurement depends on: the device and the library versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("autocompress", "torch", "transformers", "onnx", "onnxruntime", "optuna", "numpy")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
"""CPU features that change int8 speed or int8 results."""


def versions() -> dict[str, str]:
    """Version by package; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device() -> dict[str, Any]:
    """CPU model, cores, features and memory; on Linux from /proc, elsewhere what Python knows."""
    fields = _cpuinfo()
    present = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": fields.get("model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "features": [flag for flag in _FLAGS if flag in present],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _cpuinfo() -> dict[str, str]:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            pairs = [line.split(":", 1) for line in file if ":" in line]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, value in reversed(pairs)}

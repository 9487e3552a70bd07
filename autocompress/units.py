"""Quantities as users write them: ``3ms``, ``2x``, ``10m``, ``10MB``."""

from __future__ import annotations

import math
import re

from autocompress.errors import UserError

_LATENCY_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_DURATION_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def _quantity(text: str, units: dict[str, float], option: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    factors = {unit.lower(): factor for unit, factor in units.items()}
    if match is None or match[2] not in factors:
        allowed = ", ".join(units)
        raise UserError(
            f"{option} is {text!r}: give a number with its unit ({allowed}), such as {example}"
        )
    value = float(match[1]) * factors[match[2]]
    if not 0 < value < math.inf:
        raise UserError(f"{option} is {text!r}: it must be more than zero")
    return value


def latency_ms(text: str, option: str = "latency") -> float:
    """``3ms``, ``900us``, ``0.2s`` as milliseconds.

    Raises:
        UserError: no unit, not a number, or not more than zero.
    """
    return _quantity(text, _LATENCY_MS, option, "3ms")


def speedup(text: str, option: str = "speedup") -> float:
    """``2x`` as 2.0.

    Raises:
        UserError: no unit, not a number, or not more than zero.
    """
    return _quantity(text, {"x": 1.0}, option, "2x")


def size_bytes(text: str, option: str = "size") -> float:
    """``10MB``, ``500kB``, ``1.5GB`` as bytes; a kB has a thousand.

    Raises:
        UserError: no unit, not a number, or not more than zero.
    """
    return _quantity(text, _SIZE_BYTES, option, "10MB")


def compression(text: str, option: str = "compression") -> float:
    """``8x`` as 8.0.

    Raises:
        UserError: no unit, not a number, or not more than zero.
    """
    return _quantity(text, {"x": 1.0}, option, "8x")


def duration_s(text: str, option: str = "duration") -> float:
    """``90s``, ``10m``, ``1.5h`` as seconds.

    Raises:
        UserError: no unit, not a number, or not more than zero.
    """
    return _quantity(text, _DURATION_S, option, "10m")


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""Whether what was read from a file holds what its class declares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check(record: Any) -> None:
    """Of a dataclass, and of those in it.

    Raises:
        TypeError: names a field, what it holds and what it must hold.
    """
    declared: Any = type(record)
    for name, hint in _hints(declared).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            told = hint.__name__ if isinstance(hint, type) else hint
            raise TypeError(f"{name} is {value!r}, it must be {told}")


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    """Numbers are finite; JSON writes a whole one without its point."""
    kinds, origin = get_args(hint), get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in kinds)
    if origin is Literal:
        return value in kinds
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
        return len(value) == len(each) and all(map(_fits, value, each))
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(item, kinds[1]) for item in value.values())
    if hint in (int, float):
        numbers = int if hint is int else int | float
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    if dataclasses.is_dataclass(value):
        check(value)
    return isinstance(value, origin or hint)

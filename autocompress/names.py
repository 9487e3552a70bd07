"""Names that users write."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


def did_you_mean(name: object, known: Collection[str]) -> str:
    """`` (did you mean 'cpu-1-thread'?)`` after a name that is nearly a known one; else nothing."""
    near = get_close_matches(str(name), known, n=1, cutoff=0.75)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(what: str, name: object, known: Collection[str]) -> str:
    """The message of a name that is none of the known ones; it lists these where none is near."""
    near = did_you_mean(name, known)
    return f"unknown {what} {name!r}" + (near or f"; known are {', '.join(known)}")

"""Choosing a model of a front by limits, and what is said where none meets them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autocompress.errors import RequestUnmet, UserError
from autocompress.limits import Limits
from autocompress.metrics import Metric

if TYPE_CHECKING:
    from autocompress.pareto import Front, Member

_HINTS = (4.0, 3.0, 2.0, 1.5, 1.2, 1.1)
"""Times faster or smaller, of which the first that a front has is hinted at."""


def choose(
    front: Front, limits: Limits, *, smallest: bool = False, allow_tie: bool = False
) -> Member:
    """See ``Front.choose``."""
    limits.check(front.scale)
    if not limits.as_dict() and not smallest:
        raise UserError(
            "give at least one limit: a latency, a speedup, a size, a quality or a drop"
        )

    uncut, rivals = front.baseline.weight_bytes, len(front.members)

    def rank(member: Member) -> tuple[float, float]:
        ranks = member.latency_ms.value, member.quality.drop_validation
        if smallest:
            return member.weight_bytes, member.quality.drop_validation
        return ranks[::-1] if limits.of_speed or limits.of_size else ranks

    def unsure(member: Member) -> list[str]:
        return limits.missed(member.facts(uncut, rivals, certain=True))

    met = (m for m in front.members if limits.admits(m.facts(uncut, rivals)))
    crossing = sorted(met, key=rank)
    fitting = [m for m in crossing if allow_tie or not unsure(m)]
    if fitting:
        return fitting[0]
    if not front.members:
        raise RequestUnmet("the front is empty: the search found no model within its own budget")
    if crossing:
        best = crossing[0]
        value, (low, high), unit = best.speedup, best.timing.speedup_interval, "x"
        if "latency" in unsure(best):
            value, (low, high), unit = best.latency_ms.value, best.latency_ms.interval, " ms"
        raise RequestUnmet(
            f"{best.id} meets the request at {value:.3g}{unit}, but its interval ({low:.3g} "
            f"to {high:.3g}{unit}) crosses it; "
            "--allow-tie takes it"
        )
    raise RequestUnmet(
        "no model of the front meets the request; "
        + nearest(front.members, uncut, limits, front.scale)
    )


def hint(front: Front) -> Limits | None:
    """See ``Front.hint``."""
    for gain in _HINTS:
        by_size = Limits(min_compression=gain)
        limits = Limits(min_speedup=gain) if "latency" in front.objectives else by_size
        with contextlib.suppress(RequestUnmet):
            if choose(front, limits).quality.drop_validation < front.scale.worst_drop:
                return limits
    return None


def nearest(members: Sequence[Member], baseline_bytes: int, limits: Limits, metric: Metric) -> str:
    """In words: which member misses the limits by least, and which of them it misses."""
    rivals = len(members)
    closest = min(members, key=lambda m: limits.violation(m.facts(baseline_bytes, rivals)))
    missed = " and ".join(limits.missed(closest.facts(baseline_bytes, rivals)))
    quality = closest.quality
    margin = limits.stderrs(rivals) * quality.drop_validation_stderr
    size = f", {closest.weight_bytes / 1e6:.3g} MB" if limits.of_size else ""
    return (
        f"the nearest is {closest.id}, limited by its {missed}: {closest.timing}{size}, "
        f"{metric.name} {metric.text(quality.validation)} on validation "
        f"({metric.drop_text(quality.drop_validation)}, margin {margin:.2f})"
    )

"""By how much the choosing on validation flatters a front."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress.pareto import Front


def points(front: Front) -> tuple[float, float] | None:
    """See ``Front.optimism_points``."""
    scored = [m.quality for m in front.members if m.id != front.baseline.id]
    tested = [
        (q.drop_test - q.drop_validation, q.drop_test_stderr, q.drop_validation_stderr)
        for q in scored
        if q.drop_test is not None and q.drop_test_stderr is not None
    ]
    if not tested:
        return None
    return (
        fmean(more for more, *_ in tested),
        fmean(math.hypot(*stderrs) for _, *stderrs in tested),
    )


def words(front: Front) -> str | None:
    """``points`` in words."""
    found = points(front)
    if found is None:
        return None
    more, stderr = found
    return (
        f"{front.scale.lost} on test less that on validation, which chose the members: "
        f"{more:+.2f} ± {stderr:.2f} {front.scale.unit} on average"
    )

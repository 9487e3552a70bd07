"""A front as it shows itself: in a terminal, in a notebook, as a table of pandas."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from autocompress.pareto import Front, Member

_MEMBERS = 7
"""That the text shows at most."""
_STYLE = "text-align: right; font-variant-numeric: tabular-nums"


def text(front: Front) -> str:
    """The front in about ten lines: a title, a header, members, fastest first, the baseline."""
    table = _table(front, _some(front.members))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left_out = len(front.members) - _MEMBERS
    more = [f"and {left_out} more, see to_pandas()"] if left_out > 0 else []
    return "\n".join([_title(front), *(_aligned(line, widths) for line in table), *more])


def html(front: Front) -> str:
    """The whole front as a table."""
    header, *lines = _table(front, front.members)
    rows = ["".join(f'<td style="{_STYLE}">{escape(cell)}</td>' for cell in line) for line in lines]
    head = "".join(f'<th style="{_STYLE}">{escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    notes = escape("; ".join(front.notes))
    return (
        f"<table><caption>{escape(_title(front))}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table><p>{notes}</p>"
    )


def frame(front: Front) -> pd.DataFrame:
    """See ``Front.to_pandas``."""
    import pandas as pd

    rows = [
        _figures(front, member) | member.candidate
        for member in _with_baseline(front, front.members)
    ]
    return pd.DataFrame(rows).set_index("model")


def _figures(front: Front, member: Member) -> dict[str, Any]:
    latency, quality = member.latency_ms, member.quality
    return {
        "model": member.id,
        "latency_ms": latency.value,
        "latency_low_ms": latency.interval[0],
        "latency_high_ms": latency.interval[1],
        "speedup": member.speedup,
        front.metric: quality.reported,
        "drop": quality.drop_reported,
        "drop_stderr": quality.drop_stderr_reported,
        "drop_validation": quality.drop_validation,
        "drop_validation_stderr": quality.drop_validation_stderr,
        "bytes": member.weight_bytes,
        "compression": front.compression(member),
    }


def _title(front: Front) -> str:
    split = "test" if front.verified else "validation, not verified"
    estimated = ", latencies estimated" if front.estimated else ""
    name = front.hardware["name"]
    return f"{len(front.members)} models on {name} ({front.scale.name} on {split}{estimated})"


def _table(front: Front, members: tuple[Member, ...]) -> list[tuple[str, ...]]:
    scale = front.scale
    header = ("model", "ms", "speedup", scale.name, f"{scale.lost}, {scale.unit}", "MB")
    return [header, *(_row(front, member) for member in _with_baseline(front, members))]


def _row(front: Front, member: Member) -> tuple[str, ...]:
    latency, quality = member.latency_ms, member.quality
    return (
        member.id,
        f"{latency.about}{latency.value:.2f}",
        f"{latency.about}{member.speedup:.2f}x",
        front.scale.text(quality.reported),
        f"{quality.drop_reported:.2f} ± {front.error_text(member)}",
        f"{member.weight_bytes / 1e6:.1f}",
    )


def _some(members: tuple[Member, ...]) -> tuple[Member, ...]:
    """So many that are spread evenly, the first and the last included."""
    if len(members) <= _MEMBERS:
        return members
    return tuple(members[i * (len(members) - 1) // (_MEMBERS - 1)] for i in range(_MEMBERS))


def _with_baseline(front: Front, members: tuple[Member, ...]) -> tuple[Member, ...]:
    """The baseline last, where it is no member itself."""
    known = front.baseline.id in {member.id for member in front.members}
    return members if known else (*members, front.baseline)


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    (first, *others), (width, *rest) = line, widths
    cells = [cell.rjust(column) for cell, column in zip(others, rest, strict=True)]
    return "  ".join([first.ljust(width), *cells])

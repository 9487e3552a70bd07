"""``report.html``: one self-contained page on a run, drawn from its files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autocompress.errors import UserError
from autocompress.files import write_text
from autocompress.journal import Run, Trial
from autocompress.pareto import Front, Member, hypervolume, load_front
from autocompress.structure import describe_sizes

_ACCENT, _FADED, _INK = "#0b6bcb", "#9aa7b4", "#1d2733"
_LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "color": _INK},
    "margin": {"l": 55, "r": 15, "t": 30, "b": 50},
}


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder.

    Returns:
        Its path.

    Raises:
        UserError: the folder holds no front.
    """
    folder = Path(folder)
    front = load_front(folder)
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        trials = Run(folder).trials()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: run.json or trials.jsonl is missing or damaged: {error}") from error
    inputs = description["inputs"]
    members = front.members or (front.baseline,)
    parts = {
        "title": escape(f"{'/'.join(Path(inputs['model']).parts[-2:])} on {front.hardware['name']}"),
        "subtitle": escape(_summary(front, trials, description)),
        "front_note": escape(_front_note(front)),
        "front_plot": _html(_front_figure(front, trials), "front", first=True, draggable=True),
        "table": _table(front),
        "settings_note": f"All {len([t for t in trials if t.quality])} scored candidates: change in points against the baseline on "
        "the validation split, and speedup. Colour is the other of the two.",
        "settings_plot": _html(_settings_figure(trials), "settings"),
        "hypervolume_plot": _html(_hypervolume_figure(trials), "hypervolume"),
        "facts": _facts(description),
        "models": _script([_for_script(member) for member in members]),
        "run": _script(str(folder)),
        "budget": _script(front.budget.get("max_latency_ms", front.balanced.latency_ms.median)),
    }
    page = (Path(__file__).parent / "report_template.html").read_text(encoding="utf-8")
    head, *rest = page.split("{{")
    filled = [head, *(parts[name] + text for name, _, text in (piece.partition("}}") for piece in rest))]
    write_text(folder / "report.html", "".join(filled))
    return folder / "report.html"


def _summary(front: Front, trials: Sequence[Trial], description: dict[str, Any]) -> str:
    states = [trial.state for trial in trials[1:]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    limits = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in front.budget.items()) or "no limit"
    minutes = sum(trial.seconds for trial in trials) / 60
    return (
        f"{len(front.members)} models on the front of {len(states)} candidates ({counts}) in {minutes:.1f} minutes. "
        f"Budget: {limits}. Hypervolume {front.hypervolume:.3f}. Started {description['started']}."
    )


def _front_note(front: Front) -> str:
    if not front.verified:
        return "This search is not finished: figures are from the validation split and from single timings during the search."
    return (
        f"Blue: the front, scored on {front.baseline.quality.n_test} test examples and timed again in a fresh process in turn "
        "with the baseline; bars are one standard error of the difference (paired with the baseline) and the 95 % interval of "
        "the median latency. Grey: dominated candidates, by validation split and timings during the search; those far below the "
        "front lie outside the picture. Drag the line, move the slider or type a budget."
    )


def _front_figure(front: Front, trials: Sequence[Trial]) -> go.Figure:
    shown = {member.id for member in front.members}
    rest = [t for t in trials[1:] if t.quality and t.latency_ms and t.id not in shown]
    members = front.members or (front.baseline,)
    baseline = front.baseline
    figure = go.Figure()
    figure.add_scatter(
        x=[t.latency_ms.median for t in rest if t.latency_ms],
        y=[-t.quality.drop_validation for t in rest if t.quality],
        text=[f"{t.id}<br>{describe_sizes(t.sizes)}" for t in rest],
        mode="markers",
        name="dominated",
        marker={"color": _FADED, "size": 7, "opacity": 0.5},
        hovertemplate="%{text}<br>%{x:.2f} ms, %{y:+.2f} points<extra></extra>",
    )
    figure.add_scatter(
        x=[m.latency_ms.median for m in members],
        y=[-m.quality.drop_reported for m in members],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [m.latency_ms.ci95[1] - m.latency_ms.median for m in members],
            "arrayminus": [m.latency_ms.median - m.latency_ms.ci95[0] for m in members],
        },
        error_y={"type": "data", "array": [m.quality.drop_test_stderr or m.quality.drop_validation_stderr for m in members]},
        text=[f"{m.id}, {m.speedup:.2f}x<br>{describe_sizes(m.sizes)}" for m in members],
        mode="lines+markers",
        name="front",
        line={"color": _ACCENT, "width": 1, "dash": "dot"},
        marker={"color": _ACCENT, "size": 11},
        hovertemplate="%{text}<br>%{x:.2f} ms, %{y:+.2f} points<extra></extra>",
    )
    figure.add_scatter(
        x=[baseline.latency_ms.median],
        y=[0],
        mode="markers+text",
        text=["baseline fp32"],
        textposition="top left",
        name="baseline",
        marker={"symbol": "diamond", "color": _INK, "size": 12},
        hovertemplate="baseline<br>%{x:.2f} ms<extra></extra>",
    )
    figure.add_shape(
        type="line",
        xref="x",
        yref="paper",
        x0=baseline.latency_ms.median,
        x1=baseline.latency_ms.median,
        y0=0,
        y1=1,
        line={"color": "#c2410c", "width": 3},
    )
    figure.update_layout(
        **_LAYOUT,
        height=460,
        legend={"orientation": "h", "y": 1.08},
        xaxis_title="latency, ms (median)",
        yaxis_title=f"{front.metric} against the baseline, points",
    )
    figure.update_xaxes(rangemode="tozero")
    lowest = max(3.0, 1.5 * max(m.quality.drop_reported for m in members))
    highest = max(1.0, 1.5 * max(-m.quality.drop_reported for m in members))
    figure.update_yaxes(range=[-lowest, highest])
    return figure


def _settings_figure(trials: Sequence[Trial]) -> go.Figure:
    scored = [trial for trial in trials[1:] if trial.quality and trial.speedup]
    found = dict.fromkeys(name for trial in scored for name in trial.candidate)
    names = [name for name in found if len({json.dumps(t.candidate[name]) for t in scored if name in t.candidate}) > 1]
    rows = max(1, len(names))
    figure = make_subplots(rows=rows, cols=2, horizontal_spacing=0.12, vertical_spacing=0.35 / rows)
    for row, name in enumerate(names, 1):
        having = [trial for trial in scored if name in trial.candidate]
        numeric = all(isinstance(t.candidate[name], int | float) for t in having)
        values = [t.candidate[name] if numeric else json.dumps(t.candidate[name]).strip('"[]') for t in having]
        losses = [-t.quality.drop_validation for t in having if t.quality]
        speedups = [t.speedup for t in having]
        for column, (y, colour) in enumerate(((losses, speedups), (speedups, losses)), 1):
            figure.add_scatter(
                x=values,
                y=y,
                mode="markers",
                showlegend=False,
                row=row,
                col=column,
                text=[t.id for t in having],
                marker={"color": colour, "colorscale": "Viridis", "size": 8, "opacity": 0.85},
                hovertemplate="%{text}: %{x}, %{y:.2f}<extra></extra>",
            )
            figure.update_xaxes(title_text=name, title_standoff=4, title_font_size=12, row=row, col=column)
            figure.update_xaxes(exponentformat="e", row=row, col=column)
            figure.update_yaxes(title_text="points" if column == 1 else "speedup", title_font_size=12, row=row, col=column)
    figure.update_layout(**_LAYOUT, height=60 + 210 * rows)
    return figure


def _hypervolume_figure(trials: Sequence[Trial]) -> go.Figure:
    points = [[(1 / t.speedup, t.quality.drop_validation)] if t.quality and t.speedup else [] for t in trials]
    areas = [hypervolume(front) for front in accumulate(points, lambda a, b: a + b)]
    minutes = [seconds / 60 for seconds in accumulate(trial.seconds for trial in trials)]
    figure = go.Figure()
    figure.add_scatter(
        x=minutes,
        y=areas,
        mode="lines+markers",
        line={"shape": "hv", "color": _ACCENT},
        text=[t.id for t in trials],
        hovertemplate="%{text}: %{y:.3f} after %{x:.1f} min<extra></extra>",
    )
    figure.update_layout(**_LAYOUT, height=300, xaxis_title="minutes of trials", yaxis_title="hypervolume", yaxis_range=[0, 1])
    return figure


def _table(front: Front) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "model",
            "ms (median)",
            "p90",
            "speedup",
            "95 % interval",
            front.metric,
            "loss, points",
            "± s.e.",
            "MB",
            "what it is",
        )
    )
    rows = [_row(member, f' id="row-{escape(member.id)}"') for member in front.members]
    if front.baseline.id not in {member.id for member in front.members}:
        rows.append(_row(front.baseline, ' class="baseline"'))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(member: Member, attributes: str) -> str:
    quality = member.quality
    stderr = quality.drop_validation_stderr if quality.drop_test_stderr is None else quality.drop_test_stderr
    cells = (
        member.id,
        f"{member.latency_ms.median:.2f}",
        f"{member.latency_ms.p90:.2f}",
        f"{member.speedup:.2f}x",
        f"{member.speedup_ci95[0]:.2f}-{member.speedup_ci95[1]:.2f}",
        f"{quality.reported:.4f}",
        f"{quality.drop_reported:.2f}",
        f"{stderr:.2f}",
        f"{member.weight_bytes / 1e6:.1f}",
        f"{describe_sizes(member.sizes)}; {member.candidate.get('quantization.scheme', 'fp32')}",
    )
    return f"<tr{attributes}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _facts(description: dict[str, Any]) -> str:
    inputs, data, device = description["inputs"], description["data"], description["device"]
    dropped = ", ".join(f"{count} {reason}" for reason, count in data["dropped"].items() if count) or "none"
    hardware = ", ".join(f"{key} {value}" for key, value in inputs["hardware"].items() if key not in ("name", "description"))
    facts = {
        "model": inputs["model"],
        "data": data["source"],
        "examples": f"train {data['train']}, validation {data['validation']}, test {data['test']}, unlabelled {data['unlabeled']}",
        "examples dropped": dropped,
        "search space": inputs["space"]["name"],
        "sampler": f"{inputs['sampler']}, seed {inputs['seed']}",
        "hardware profile": f"{inputs['hardware']['name']}: {inputs['hardware']['description']} ({hardware})",
        "device": f"{device['cpu']}, {device['cores']} cores, {device['memory_bytes'] / 2**30:.0f} GiB",
        "CPU features": " ".join(device["features"]) or "unknown",
        "versions": ", ".join(f"{name} {version}" for name, version in description["versions"].items()),
    }
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items()) + "</dl>"


def _html(figure: go.Figure, name: str, first: bool = False, draggable: bool = False) -> str:
    config = {"displayModeBar": False, "responsive": True, "edits": {"shapePosition": draggable}}
    html: str = figure.to_html(full_html=False, include_plotlyjs=first, div_id=name, config=config, default_width="100%")
    return f'<div class="plot">{html}</div>'


def _script(value: Any) -> str:
    return json.dumps(value).replace("</", "<\\/")


def _for_script(member: Member) -> dict[str, Any]:
    quality = member.quality
    return {
        "id": member.id,
        "latency": member.latency_ms.median,
        "speedup": member.speedup,
        "quality": quality.reported,
        "qualityText": f"{quality.reported:.4f} ({0 - quality.drop_reported:+.2f} points)",
        "candidate": member.candidate,
    }

"""``report.html``: one self-contained page on a run, drawn from its files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autocompress.errors import RequestUnmet, UserError
from autocompress.files import write_text
from autocompress.journal import Run, Trial
from autocompress.limits import Limits
from autocompress.pareto import Front, Member, Metric, hypervolume, load_fronts
from autocompress.reading import Reading
from autocompress.scores import CONSTANT, Score, Timing
from autocompress.structure import describe_sizes

_ACCENT, _SECOND, _FADED, _INK = "#0b6bcb", "#c2410c", "#9aa7b4", "#1d2733"
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
        UserError: the folder holds no front, or what it holds is damaged.
    """
    folder, run = Path(folder), Run(Path(folder))
    fronts = list(load_fronts(folder).values())
    description, trials = run.description(), run.trials()
    names = [front.hardware["name"] for front in fronts]
    try:
        model = Path(description["inputs"]["model"])
        summary, facts = _summary(fronts, trials, description), _facts(description, fronts[0])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'run.json'} is damaged: {error!r}") from error
    parts = {
        "title": escape(f"{'/'.join(model.parts[-2:])} on {' and '.join(names)}"),
        "subtitle": escape(summary),
        "switch": _switch(names),
        "sections": "".join(
            _section(front, trials, index, len(fronts)) for index, front in enumerate(fronts)
        ),
        "facts": facts,
        "devices": _script([_for_script(front, _seen(front, trials)) for front in fronts]),
        "run": _script(str(folder)),
    }
    write_text(folder / "report.html", _filled("report_template.html", parts))
    return folder / "report.html"


def _filled(template: str, parts: Mapping[str, str]) -> str:
    head, *rest = (Path(__file__).parent / template).read_text(encoding="utf-8").split("{{")
    return "".join(
        [head, *(parts[name] + text for name, _, text in (piece.partition("}}") for piece in rest))]
    )


def _switch(names: Sequence[str]) -> str:
    if len(names) == 1:
        return ""
    options = "".join(
        f'<option value="{index}">{escape(name)}</option>' for index, name in enumerate(names)
    )
    return f'<p class="switch"><label>Device <select id="switch">{options}</select></label></p>'


def _section(front: Front, trials: Sequence[Trial], index: int, count: int) -> str:
    name, seen = front.hardware["name"], _seen(front, trials)
    parts = {
        "index": str(index),
        "hidden": " hidden" if index else "",
        "on_device": f" on {escape(name)}" if count > 1 else "",
        "front_note": escape(_front_note(front)),
        "axes": _axis_buttons(front, index),
        "front_plot": _html(
            _front_figure(front, seen, _axes(front)[0]),
            f"front-{index}",
            first=index == 0,
            draggable=True,
        ),
        "table": _table(front, index),
        "settings_note": f"All {len(seen)} scored candidates: change of the {front.metric} in "
        f"{front.scale.unit} against the baseline, on the validation split, "
        "and speedup. Colour is the other of the two.",
        "settings_plot": _html(_settings_figure(seen[1:], front.scale), f"settings-{index}"),
        "beside": "latency, or its size," if _sized(front) else "latency",
        "worst": f"a change by {front.scale.worst_drop:g} {front.scale.unit}",
        "hypervolume_plot": _html(_hypervolume_figure(trials, name, front), f"hypervolume-{index}"),
    }
    return _filled("report_section.html", parts)


@dataclass(frozen=True)
class _Seen:
    """A trial as one device scored it."""

    trial: Trial
    name: str

    @property
    def score(self) -> Score:
        return self.trial.scores[self.name]

    @property
    def latency(self) -> float:
        return self.score.timing.latency_ms.value

    @property
    def size(self) -> float:
        """Megabytes."""
        return (self.trial.bytes_on(self.name) or 0) / 1e6

    @property
    def speedup(self) -> float:
        return self.score.timing.speedup

    @property
    def flaw(self) -> str:
        """What keeps it from the front, whatever its scores."""
        return f", {CONSTANT}" if self.score.quality and self.score.quality.constant else ""

    @property
    def drop(self) -> float:
        assert self.score.quality
        return self.score.quality.drop_validation


def _seen(front: Front, trials: Sequence[Trial]) -> list[_Seen]:
    """The trials that the front's device scored, the baseline first."""
    name = front.hardware["name"]
    return [
        _Seen(trial, name)
        for trial in trials
        if name in trial.scores and trial.scores[name].quality
    ]


@dataclass(frozen=True)
class _Axis:
    """What the front is drawn against: ``latency`` in milliseconds, or ``size`` in megabytes."""

    name: str
    unit: str

    def of(self, one: Member | _Seen) -> float:
        if isinstance(one, _Seen):
            return one.latency if self.name == "latency" else one.size
        return one.latency_ms.value if self.name == "latency" else one.weight_bytes / 1e6

    def limit(self, budget: float) -> dict[str, float]:
        """A budget on this axis as one of ``Limits``."""
        if self.name == "latency":
            return {"max_latency_ms": budget}
        return {"max_bytes": round(1e6 * budget)}


_LATENCY, _SIZE = _Axis("latency", "ms"), _Axis("size", "MB")


def _sized(front: Front) -> bool:
    return "size" in front.objectives


def _axes(front: Front) -> tuple[_Axis, ...]:
    """The one that is shown at first, and the other one where there are two."""
    if not _sized(front):
        return (_LATENCY,)
    return (_LATENCY, _SIZE) if "latency" in front.objectives else (_SIZE, _LATENCY)


def _axis_buttons(front: Front, index: int) -> str:
    if not _sized(front):
        return ""
    buttons = "".join(
        f'<button type="button" data-axis="{number}">{axis.name}</button>'
        for number, axis in enumerate(_axes(front))
    )
    return f'<p class="axes" id="axes-{index}">Against {buttons}</p>'


def _summary(fronts: Sequence[Front], trials: Sequence[Trial], description: dict[str, Any]) -> str:
    states = [trial.state for trial in trials[1:]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    minutes = sum(trial.seconds for trial in trials) / 60
    estimated = [front.hardware["name"] for front in fronts if front.estimated]
    members = " and ".join(
        f"{len(front.members)} models on the front of {front.hardware['name']}" for front in fronts
    )
    sentences = [
        f"{members}, from {len(states)} candidates ({counts}) in {minutes:.1f} minutes.",
        *(
            f"{front.hardware['name']}: budget {_limits(front)}, hypervolume {front.areas}."
            for front in fronts
        ),
        f"Started {description['started']}.",
        *(
            f"Latency was predicted before each trial on {name} with a mean error of "
            f"{100 * told['mean_abs_error']:.1f} % "
            f"{'of the estimate ' if name in estimated else ''}over {told['n']} trials."
            for name, told in description.get("prediction", {}).items()
        ),
        *(
            f"After {steps} steps students ranked as in the end with a correlation of "
            f"{told['rank_correlation']:.2f}, over {told['n']} of them."
            for steps, told in description.get("rungs", {}).items()
        ),
    ]
    return " ".join(sentences)


def _limits(front: Front) -> str:
    def words(name: str, value: float) -> str:
        if name == "max_bytes":
            return f"max size {value / 1e6:g} MB"
        return f"{name.replace('_', ' ')} {value:g}"

    return ", ".join(words(*limit) for limit in front.budget.items()) or "without limit"


def _front_note(front: Front) -> str:
    if front.estimated:
        return (
            "Latencies are ESTIMATES from published peaks of the device "
            f"({front.hardware['source']}, {front.hardware['date']}), "
            "not measurements: good for ranking, not for promises. Quality is of the files, "
            "scored on this machine."
        )
    if not front.verified:
        return (
            "This search is not finished: figures are from the validation split and from single "
            "timings during the search."
        )
    disturbed = [m.id for m in (front.baseline, *front.members) if m.timing.disturbed]
    return (
        "Blue: the front, chosen on the validation split, scored on "
        f"{front.baseline.quality.n_test} {front.scale.examples} and timed again in a fresh "
        "process in turn with the baseline; bars are one standard error of the difference "
        "(paired with the baseline) and the "
        f"{100 * front.baseline.latency_ms.confidence:g} % interval of "
        f"the {front.baseline.latency_ms.statistic} latency. Grey: dominated candidates, by "
        f"validation split and timings during "
        f"the search; {_open_circles(front)}what is far from the others lies outside the picture. "
        "Drag the line, move the slider or type a budget; the limits of the search hold beside it."
        + "".join(f" {note[0].upper()}{note[1:]}." for note in front.notes)
        + (
            f" Disturbed by other work on the machine while timed: {', '.join(disturbed)}."
            if disturbed
            else ""
        )
    )


def _open_circles(front: Front) -> str:
    words = {
        "cold": "when run once in a while, after the caches were displaced",
        "warm": "when run back to back",
    }
    beside = front.baseline.timing.beside
    return f"open circles: the front {words[beside.regime]}; " if beside else ""


def _front_figure(front: Front, seen: Sequence[_Seen], axis: _Axis = _LATENCY) -> go.Figure:
    shown = {member.id for member in front.members}
    rest = [one for one in seen[1:] if one.trial.id not in shown]
    members = front.members or (front.baseline,)
    baseline, metric, timed = front.baseline, front.scale, axis == _LATENCY
    other = baseline.timing.beside
    tilde = front.baseline.latency_ms.about
    about = tilde if timed else ""
    point = f"%{{text}}<br>{about}%{{x:.2f}} {axis.unit}, %{{y:+.2f}} {metric.unit}<extra></extra>"
    title = f"{_timed(baseline.timing)} latency, ms ({_statistic(front)})".strip()
    figure = go.Figure()
    figure.add_scatter(
        x=[axis.of(one) for one in rest],
        y=[metric.change(one.drop) for one in rest],
        text=[f"{one.trial.id}{one.flaw}<br>{describe_sizes(one.trial.sizes)}" for one in rest],
        mode="markers",
        name="dominated",
        marker={"color": _FADED, "size": 7, "opacity": 0.5},
        hovertemplate=point,
    )
    figure.add_scatter(
        x=[axis.of(m) for m in members],
        y=[metric.change(m.quality.drop_reported) for m in members],
        error_x={
            "visible": timed,
            "type": "data",
            "symmetric": False,
            "array": [m.latency_ms.interval[1] - m.latency_ms.value for m in members],
            "arrayminus": [m.latency_ms.value - m.latency_ms.interval[0] for m in members],
        },
        error_y={"type": "data", "array": [m.quality.drop_stderr_reported for m in members]},
        text=[f"{m.id}, {tilde}{m.speedup:.2f}x<br>{describe_sizes(m.sizes)}" for m in members],
        mode="lines+markers" if not _sized(front) else "markers",
        name="front",
        line={"color": _ACCENT, "width": 1, "dash": "dot"},
        marker={"color": _ACCENT, "size": 11} | _colours(front, members, axis),
        hovertemplate=point,
    )
    figure.add_scatter(
        x=[axis.of(baseline)],
        y=[0],
        mode="markers+text",
        text=["baseline fp32"],
        textposition="top left",
        name="baseline",
        marker={"symbol": "diamond", "color": _INK, "size": 12},
        hovertemplate=f"baseline<br>{about}%{{x:.2f}} {axis.unit}<extra></extra>",
    )
    if other and timed:
        both = [(m, m.timing.beside) for m in members if m.timing.beside]
        figure.add_scatter(
            x=[beside.latency_ms.value for _, beside in both],
            y=[metric.change(m.quality.drop_reported) for m, _ in both],
            text=[f"{m.id}, {other.regime}, {beside.speedup:.2f}x" for m, beside in both],
            mode="markers",
            name=f"front, {other.regime}",
            marker={"symbol": "circle-open", "color": _ACCENT, "size": 9},
            hovertemplate=point,
        )
    figure.add_shape(
        type="line",
        xref="x",
        yref="paper",
        x0=axis.of(baseline),
        x1=axis.of(baseline),
        y0=0,
        y1=1,
        line={"color": "#c2410c", "width": 3},
    )
    figure.update_layout(
        **_LAYOUT,
        height=460,
        legend={"orientation": "h", "y": 1.08},
        xaxis_title=title if timed else "size of the file, MB",
        yaxis_title=metric.axis,
    )
    figure.update_xaxes(rangemode="tozero")
    counting = [
        m.quality.drop_reported for m in members if m.quality.drop_reported <= metric.worst_drop
    ]
    worst = max(0.6 * metric.worst_drop, 1.5 * max(counting, default=0.0))
    best = max(0.2 * metric.worst_drop, 1.5 * max(-m.quality.drop_reported for m in members))
    figure.update_yaxes(range=sorted([metric.change(worst), metric.change(-best)]))
    return figure


def _colours(front: Front, members: Sequence[Member], axis: _Axis) -> dict[str, Any]:
    """The third quantity of three, as the colour of the front's markers."""
    if not _sized(front):
        return {}
    third = _SIZE if axis == _LATENCY else _LATENCY
    bar = {"title": {"text": third.unit}, "thickness": 12}
    colours = [third.of(member) for member in members]
    return {"color": colours, "colorscale": "Viridis", "colorbar": bar}


def _settings_figure(scored: Sequence[_Seen], metric: Metric) -> go.Figure:
    settings = dict.fromkeys(name for one in scored for name in one.trial.candidate)
    names = [
        name
        for name in settings
        if len({json.dumps(c[name]) for one in scored if name in (c := one.trial.candidate)}) > 1
    ]
    rows = max(1, len(names))
    figure = make_subplots(rows=rows, cols=2, horizontal_spacing=0.12, vertical_spacing=0.35 / rows)
    for row, name in enumerate(names, 1):
        having = [one for one in scored if name in one.trial.candidate]
        chosen = [one.trial.candidate[name] for one in having]
        numeric = all(isinstance(value, int | float) for value in chosen)
        values = chosen if numeric else [json.dumps(value).strip('"[]') for value in chosen]
        changes, speedups = (
            [metric.change(one.drop) for one in having],
            [one.speedup for one in having],
        )
        for column, (y, colour) in enumerate(((changes, speedups), (speedups, changes)), 1):
            figure.add_scatter(
                x=values,
                y=y,
                mode="markers",
                showlegend=False,
                row=row,
                col=column,
                text=[one.trial.id for one in having],
                marker={"color": colour, "colorscale": "Viridis", "size": 8, "opacity": 0.85},
                hovertemplate="%{text}: %{x}, %{y:.2f}<extra></extra>",
            )
            figure.update_xaxes(
                title_text=name, title_standoff=4, title_font_size=12, row=row, col=column
            )
            figure.update_xaxes(exponentformat="e", row=row, col=column)
            figure.update_yaxes(
                title_text=metric.unit if column == 1 else "speedup",
                title_font_size=12,
                row=row,
                col=column,
            )
    figure.update_layout(**_LAYOUT, height=60 + 210 * rows)
    return figure


def _hypervolume_figure(trials: Sequence[Trial], name: str, front: Front) -> go.Figure:
    minutes = [seconds / 60 for seconds in accumulate(trial.seconds for trial in trials)]
    figure = go.Figure()
    for axis in _axes(front):
        figure.add_scatter(
            x=minutes,
            y=_areas_over_time(trials, name, front, axis),
            mode="lines+markers",
            name=f"{front.metric} and {axis.name}",
            line={"shape": "hv", "color": _ACCENT if axis == _LATENCY else _SECOND},
            text=[t.id for t in trials],
            hovertemplate="%{text}: %{y:.3f} after %{x:.1f} min<extra></extra>",
        )
    figure.update_layout(
        **_LAYOUT,
        height=300,
        xaxis_title="minutes of trials",
        yaxis_title="hypervolume",
        yaxis_range=[0, 1],
    )
    return figure


def _areas_over_time(trials: Sequence[Trial], name: str, front: Front, axis: _Axis) -> list[float]:
    def points(trial: Trial) -> list[tuple[float, float]]:
        score = trial.scores.get(name)
        if score is None or score.quality is None:
            return []
        relative = 1 / score.timing.speedup
        if axis == _SIZE:
            relative = (trial.bytes_on(name) or 0) / front.baseline.weight_bytes
        return [(relative, score.quality.drop_validation)]

    so_far = accumulate(map(points, trials), lambda a, b: a + b)
    return [hypervolume(reached, front.scale.worst_drop) for reached in so_far]


def _table(front: Front, index: int) -> str:
    latency = front.baseline.latency_ms
    names = [
        "model",
        f"{_timed(front.baseline.timing)} ms ({_statistic(front)})".strip(),
        "speedup",
        f"{100 * latency.confidence:g} % interval",
        front.metric,
        f"{front.scale.lost}, {front.scale.unit}",
        "± s.e.",
        *(f"{of} ms, speedup".strip() for of, _ in _more(front.baseline.timing)),
        "MB",
        *(["MB without embedding", "compression", "load ms"] if _sized(front) else []),
        "peak MB",
        "format",
        "what it is",
    ]
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = [
        _row(member, front, f' id="row-{index}-{escape(member.id)}"') for member in front.members
    ]
    if front.baseline.id not in {member.id for member in front.members}:
        rows.append(_row(front.baseline, front, ' class="baseline"'))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _statistic(front: Front) -> str:
    return "estimated" if front.estimated else front.baseline.latency_ms.statistic


def _timed(timing: Timing) -> str:
    """What the latency is of, where that needs saying."""
    return " ".join([timing.phase or "", timing.regime if timing.beside else ""]).strip()


def _more(timing: Timing) -> list[tuple[str, Timing]]:
    """The same model's in the other phases, and in the other regime, with what they are of."""
    beside = timing.beside
    others = [(other.phase or "", other) for other in timing.others]
    return [*others, *([(f"{timing.phase or ''} {beside.regime}", beside)] if beside else [])]


def _row(member: Member, front: Front, attributes: str) -> str:
    quality, timing, metric = member.quality, member.timing, front.scale
    measured = member.latency_ms.basis == "measured"
    about = member.latency_ms.about
    load = "-" if member.load_ms is None else f"{member.load_ms:.0f}"
    cells = (
        member.id,
        f"{about}{member.latency_ms.value:.2f}",
        f"{about}{member.speedup:.2f}x",
        f"{timing.speedup_interval[0]:.2f}-{timing.speedup_interval[1]:.2f}" if measured else "-",
        metric.text(quality.reported),
        f"{quality.drop_reported:.2f}",
        front.error_text(member),
        *(
            f"{about}{other.latency_ms.value:.2f}, {about}{other.speedup:.2f}x"
            for _, other in _more(timing)
        ),
        f"{member.weight_bytes / 1e6:.1f}",
        *([member.rest, f"{front.compression(member):.2f}x", load] if _sized(front) else []),
        "-" if timing.memory_bytes is None else f"{about}{timing.memory_bytes / 1e6:.0f}",
        timing.precision,
        describe_sizes(member.sizes) + member.mark,
    )
    return f"<tr{attributes}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _facts(description: dict[str, Any], front: Front) -> str:
    inputs, data = description["inputs"], description["data"]
    timed = {
        hardware["name"]: hardware["sequence_length"]
        for hardware in inputs["hardware"]
        if data.get("classes") and "sequence_length" in hardware
    }
    of_class = f" of {[*data['classes']['train']][1]}" if front.metric == "f1" else ""
    facts = {
        "model": inputs["model"],
        "data": data["source"],
        **Reading.from_json(data).lines(timed),
        **({"doubts": "; ".join(data["doubts"])} if data.get("doubts") else {}),
        "scored by": front.metric + of_class,
        "search space": inputs["space"]["name"],
        "sampler": f"{inputs['sampler']}, seed {inputs['seed']}",
        **{
            f"hardware profile {hardware['name']}": _hardware(hardware)
            for hardware in inputs["hardware"]
        },
        **{
            f"device of {name}": _device(fingerprint)
            for name, fingerprint in description["devices"].items()
        },
        "versions": ", ".join(
            f"{name} {version}" for name, version in description["versions"].items()
        ),
    }
    return (
        "<dl>"
        + "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items()
        )
        + "</dl>"
    )


def _hardware(hardware: dict[str, Any]) -> str:
    shown = {
        k: v
        for k, v in hardware.items()
        if k not in ("name", "description", "fingerprint", "peaks") and v not in (None, "", [])
    }
    return (
        f"{hardware['description']} ({', '.join(f'{key} {value}' for key, value in shown.items())})"
    )


def _device(fingerprint: dict[str, Any]) -> str:
    if "cpu" not in fingerprint:
        return ", ".join(f"{key} {value}" for key, value in fingerprint.items())
    gpu = f", {fingerprint['gpu']}" if fingerprint.get("gpu") else ""
    features = " ".join(fingerprint["features"]) or "no int8 features known"
    memory = f"{fingerprint['memory_bytes'] / 2**30:.0f} GiB"
    return f"{fingerprint['cpu']}, {fingerprint['cores']} cores, {memory}, {features}{gpu}"


def _html(figure: go.Figure, name: str, first: bool = False, draggable: bool = False) -> str:
    config = {"displayModeBar": False, "responsive": True, "edits": {"shapePosition": draggable}}
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=first, div_id=name, config=config, default_width="100%"
    )
    return f'<div class="plot">{html}</div>'


def _script(value: Any) -> str:
    return json.dumps(value).replace("</", "<\\/")


def _for_script(front: Front, seen: Sequence[_Seen]) -> dict[str, Any]:
    members, metric = front.members or (front.baseline,), front.scale
    split = "test, chosen on validation" if front.verified else "validation"
    axes = [
        {
            "name": axis.name,
            "unit": axis.unit,
            "budget": _first_budget(front, axis),
            "choices": _choices(front, axis),
            "figure": _front_figure(front, seen, axis).to_plotly_json(),
        }
        for axis in _axes(front)
    ]
    return {
        "name": front.hardware["name"],
        "estimated": front.estimated,
        "budget": _first_budget(front, _axes(front)[0]),
        "choices": _choices(front, _axes(front)[0]),
        **({"axes": axes} if _sized(front) else {}),
        "models": [
            {
                "id": member.id,
                "latency": member.latency_ms.value,
                "speedup": member.speedup,
                "size": member.weight_bytes / 1e6,
                "qualityText": f"{metric.name} {metric.text(member.quality.reported)} "
                f"({metric.change(member.quality.drop_reported):+.2f} {metric.unit}) on {split}",
                "candidate": member.candidate,
            }
            for member in members
        ],
    }


def _choices(front: Front, axis: _Axis) -> list[dict[str, Any]]:
    """What ``Front.choose`` says as the budget of an axis grows, beside the other limits of the
    search: from each budget in ascending order the model, or why there is none."""
    highs = [member.latency_ms.interval[1] for member in front.members if axis == _LATENCY]
    steps = sorted({*map(axis.of, front.members), *highs})
    choices = []
    for budget in [0.99 * min(steps, default=1.0), *steps]:
        try:
            choice = {"id": front.choose(Limits(**front.budget | axis.limit(budget))).id}
        except RequestUnmet as error:
            choice = {"why": str(error)}
        choices.append({"from": budget} | choice)
    return choices


def _first_budget(front: Front, axis: _Axis) -> float:
    """The limit that the search had, else what the balanced model needs for certain."""
    if axis == _LATENCY:
        balanced = front.balanced_by("latency").latency_ms.interval[1]
        return front.budget.get("max_latency_ms", balanced)
    return front.budget.get("max_bytes", front.balanced_by("size").weight_bytes) / 1e6

"""``report.html``: one self-contained page on a run, drawn from its files alone.

What is text or a table is written here; ``report.js`` draws the pictures from the figures that
stand in the page.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from autocompress.candidate import freeze, thaw
from autocompress.errors import RequestUnmet, UserError
from autocompress.files import write_text
from autocompress.influence import influence
from autocompress.journal import Run, Trial
from autocompress.limits import Limits
from autocompress.pareto import Front, Member, hypervolume, load_fronts
from autocompress.reading import Reading
from autocompress.scores import CONSTANT, Score, Timing
from autocompress.structure import describe_sizes
from autocompress.techniques import SETTINGS
from autocompress.units import clock

_FOLDERS = re.compile(
    r"""(?<![\w:/\\<])(?:[A-Za-z]:|~|\.\.?)?[/\\](?:[^\s/\\,;:'"]+[/\\])+(?=[^\s/\\,;:'"])"""
)
"""Of the path of a file, as texts name it; not of an address."""
_OUTCOMES = {"complete": "scored", "over-budget": "over budget"}
"""States that have other words than their own."""


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
        model = "/".join(Path(_placeless(description["inputs"]["model"])).parts[-2:])
        summary, facts = _summary(fronts, trials, description), _facts(description, fronts[0])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'run.json'} is damaged: {error!r}") from error
    commands = [_command(folder, [name] if len(names) > 1 else []) for name in names]
    parts = {
        "title": escape(f"{model} on {' and '.join(names)}"),
        "subtitle": escape(summary),
        "switch": _switch(names),
        "sections": "".join(
            _section(front, trials, index, len(fronts)) for index, front in enumerate(fronts)
        ),
        "facts": facts,
        "devices": _script(
            [
                _for_script(front, trials, command)
                for front, command in zip(fronts, commands, strict=True)
            ]
        ),
        "script": _asset("report.js"),
    }
    write_text(folder / "report.html", _filled("report_template.html", parts))
    return folder / "report.html"


def _command(folder: Path, hardware: Sequence[str]) -> str:
    """What exports a model, less its name; from the folder that the run's folder is in."""
    options = [word for name in hardware for word in ("--hardware", name)]
    return shlex.join(["autocompress", "export", folder.resolve().name, *options])


def _placeless(text: str) -> str:
    """The text with the names of files in place of their paths, which are the user's own."""
    return _FOLDERS.sub("", text)


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _filled(template: str, parts: Mapping[str, str]) -> str:
    head, *rest = _asset(template).split("{{")
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
        "table": _table(front, index),
        "settings_note": escape(_settings_note(front, seen)),
        "trials": _trial_table(front, trials),
        "time": _time(front, trials),
        "beside": "latency, or its size," if _sized(front) else "latency",
        "worst": f"a change by {front.scale.worst_drop:g} {front.scale.unit}",
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
    def timing(self) -> Timing:
        return self.score.timing

    @property
    def weight_bytes(self) -> int:
        return self.trial.bytes_on(self.name) or 0

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
    """What the front is drawn against: the speedup of one of a model's timings, or its compression.

    Args:
        name: as the switch has it.
        unit: of what a budget limits.
        timed: the timing that it is of, see ``_timings``; None is size.
        budgeted: whether models can be picked by it.
    """

    name: str
    unit: str
    timed: str | None
    budgeted: bool

    def at(self, one: Member | _Seen, front: Front) -> dict[str, Any] | None:
        """Where a model stands; None where it was not timed so."""
        if self.timed is None:
            size, gain = one.weight_bytes / 1e6, front.baseline.weight_bytes / one.weight_bytes
            text = f"{size:.2f} {self.unit}, {gain:.2f}x smaller"
            return {"value": size, "gain": gain, "low": gain, "high": gain, "text": text}
        timing = _timings(one.timing).get(self.timed)
        if timing is None:
            return None
        low, high = timing.speedup_interval
        latency, about = timing.latency_ms.value, timing.latency_ms.about
        text = f"{about}{latency:.2f} {self.unit}, {about}{timing.speedup:.2f}x"
        return {"value": latency, "gain": timing.speedup, "low": low, "high": high, "text": text}

    @property
    def gain(self) -> str:
        return "compression" if self.timed is None else self.name.replace("latency", "speedup")

    def limit(self, budget: float) -> dict[str, float]:
        """A budget on this axis as one of ``Limits``."""
        if self.timed is None:
            return {"max_bytes": round(1e6 * budget)}
        return {"max_latency_ms": budget}


def _timings(timing: Timing) -> dict[str, Timing]:
    """A model's timings by what they are of; the one that guides first, without a name."""
    return {"": timing} | dict(_more(timing))


def _sized(front: Front) -> bool:
    return "size" in front.objectives


def _axes(front: Front) -> tuple[_Axis, ...]:
    """The one that is shown at first, and the others."""
    timing = front.baseline.timing
    latencies = [_Axis(f"{_timed(timing)} latency".strip(), "ms", "", True)]
    latencies += [_Axis(f"{other} latency", "ms", other, False) for other, _ in _more(timing)]
    size = [_Axis("size", "MB", None, True)] if _sized(front) else []
    shown = [*latencies, *size] if "latency" in front.objectives else [*size, *latencies]
    return tuple(shown)


def _axis_buttons(front: Front, index: int) -> str:
    if len(_axes(front)) == 1:
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
        f"{100 * front.baseline.latency_ms.confidence:g} % interval of the speedup, by the "
        f"{front.baseline.latency_ms.statistic} latency. Grey: dominated candidates, by "
        "validation split and timings during the search; what is far from the others lies outside "
        "the picture. The line is the budget: drag it, move the slider or type; the limits of the "
        "search hold beside it."
        + "".join(f" {note[0].upper()}{note[1:]}." for note in front.notes)
        + (
            f" Disturbed by other work on the machine while timed: {', '.join(disturbed)}."
            if disturbed
            else ""
        )
    )


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
        *(f"{of} ms, speedup" for of, _ in _more(front.baseline.timing)),
        *(["MB (without embedding)", "compression", "load ms"] if _sized(front) else ["MB"]),
        "peak MB",
        "format",
        "what it is",
    ]
    rows = [
        _row(member, front, f' id="row-{index}-{escape(member.id)}"') for member in front.members
    ]
    if front.baseline.id not in {member.id for member in front.members}:
        rows.append(_row(front.baseline, front, ' class="baseline"'))
    return _tabled("front", "Models of the front, the fastest first", names, "".join(rows))


def _statistic(front: Front) -> str:
    return "estimated" if front.estimated else front.baseline.latency_ms.statistic


def _timed(timing: Timing) -> str:
    """What the latency is of, where that needs saying."""
    return " ".join([timing.phase or "", timing.regime if timing.beside else ""]).strip()


def _more(timing: Timing) -> list[tuple[str, Timing]]:
    """The same model's in the other phases, and in the other regime, with what they are of."""
    beside = timing.beside
    others = [(other.phase or "", other) for other in timing.others]
    return [
        *others,
        *([(f"{timing.phase or ''} {beside.regime}".strip(), beside)] if beside else []),
    ]


def _row(member: Member, front: Front, attributes: str) -> str:
    quality, timing, metric = member.quality, member.timing, front.scale
    measured = member.latency_ms.basis == "measured"
    about = member.latency_ms.about
    load = "-" if member.load_ms is None else f"{member.load_ms:.0f}"
    size = f"{member.weight_bytes / 1e6:.1f}"
    if _sized(front):
        size += f" ({member.rest})"
    sizes = size, f"{front.compression(member):.2f}x", load
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
        *(sizes if _sized(front) else sizes[:1]),
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
            f"<dt>{escape(key)}</dt><dd>{escape(_placeless(str(value)))}</dd>"
            for key, value in facts.items()
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


def _script(value: Any) -> str:
    return json.dumps(value).replace("<", "\\u003c")


def _for_script(front: Front, trials: Sequence[Trial], command: str) -> dict[str, Any]:
    axes, metric = _axes(front), front.scale
    seen, members = _seen(front, trials), {member.id for member in front.members}
    return {
        "name": front.hardware["name"],
        "estimated": front.estimated,
        "command": command,
        "metric": metric.name,
        "title": metric.axis,
        "unit": metric.unit,
        "range": _range(front),
        "axes": [_axis(front, axis) for axis in axes],
        "models": [_model(member, front) for member in front.members or (front.baseline,)],
        "baseline": _model(front.baseline, front),
        "trials": [
            {
                "id": one.trial.id,
                "words": f"{describe_sizes(one.trial.sizes)}{one.flaw}",
                "change": metric.change(one.drop),
                "onFront": one.trial.id in members,
                "at": [axis.at(one, front) for axis in axes],
            }
            for one in seen[1:]
        ],
        "settings": list(_settings(front, seen[1:])),
        "progress": _progress(front, trials),
    }


def _axis(front: Front, axis: _Axis) -> dict[str, Any]:
    baseline = axis.at(front.baseline, front)
    assert baseline
    return {
        "name": axis.name,
        "unit": axis.unit,
        "gain": axis.gain,
        "base": baseline["value"],
        "budget": _first_budget(front, axis) if axis.budgeted else None,
        "choices": _choices(front, axis) if axis.budgeted else [],
    }


def _model(member: Member, front: Front) -> dict[str, Any]:
    metric, quality = front.scale, member.quality
    split = "test, chosen on validation" if front.verified else "validation"
    change = f"{metric.change(quality.drop_reported):+.2f}"
    sizes = zip(*(member.sizes[name] for name in ("layers", "heads", "ffn")), strict=True)
    return {
        "id": member.id,
        "words": describe_sizes(member.sizes),
        "change": metric.change(quality.drop_reported),
        "stderr": quality.drop_stderr_reported,
        "quality": f"{metric.name} {metric.text(quality.reported)} "
        f"({change} {metric.unit}) on {split}",
        "score": metric.text(quality.reported),
        "changed": f"{change} ± {front.error_text(member)} {metric.unit}",
        "size": f"{member.weight_bytes / 1e6:.1f} MB",
        "format": member.timing.precision,
        "settings": _differing(member.candidate),
        "layers": list(sizes),
        "at": [axis.at(member, front) for axis in _axes(front)],
    }


def _range(front: Front) -> list[float]:
    """Of the changes that the picture of the front shows: those of members that count."""
    metric, members = front.scale, front.members or (front.baseline,)
    drops = [member.quality.drop_reported for member in members]
    counting = [drop for drop in drops if drop <= metric.worst_drop]
    worst = max(0.6 * metric.worst_drop, 1.5 * max(counting, default=0.0))
    best = max(0.2 * metric.worst_drop, 1.5 * -min(drops))
    return sorted([metric.change(worst), metric.change(-best)])


def _differing(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not at their defaults; runs of earlier versions name all."""
    known = SETTINGS.by_name
    return {
        name: value
        for name, value in candidate.items()
        if name not in known or value != thaw(known[name].default)
    }


def _chosen(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that means something beside the candidate's, defaults included."""
    complete = SETTINGS.complete({name: freeze(value) for name, value in candidate.items()})
    active = {s.name: thaw(complete[s.name]) for s in SETTINGS if s.when(complete)}
    return active | dict(candidate)


def _settings(front: Front, seen: Sequence[_Seen]) -> Iterator[dict[str, Any]]:
    """Those that candidates differ in, the most telling first."""
    metric, chosen = front.scale, [_chosen(one.trial.candidate) for one in seen]
    axis, *_ = _axes(front)
    outcomes = {
        metric.name: [one.drop for one in seen],
        axis.gain: [place["gain"] for one in seen if (place := axis.at(one, front))],
    }

    def told(name: str) -> dict[str, Any]:
        having = [i for i, values in enumerate(chosen) if name in values]
        keys = [_key(chosen[i][name]) for i in having]
        shares = {
            of: influence(keys, [figures[i] for i in having]) for of, figures in outcomes.items()
        }
        values = [_key(values[name]) if name in values else None for values in chosen]
        return {"name": name, "values": values, "influence": shares}

    def weight(setting: dict[str, Any]) -> float:
        return -max(share[0] if share else 0.0 for share in setting["influence"].values())

    names = dict.fromkeys(name for values in chosen for name in values)
    varied = [name for name in names if len({_key(v[name]) for v in chosen if name in v}) > 1]
    yield from sorted(map(told, varied), key=weight)


def _key(value: Any) -> int | float | str:
    """A value of a setting as a picture has it: a number, else text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value).strip('"[]').replace('"', "")


def _settings_note(front: Front, seen: Sequence[_Seen]) -> str:
    return (
        f"All {len(seen) - 1} scored candidates, by the settings that they differ in, on the "
        f"validation split: change of the {front.metric} against the baseline, and the speedup or "
        "the compression. Percentages are the share of the differences between candidates that a "
        "setting explains alone, ± a standard error, by their ranks and corrected for chance; "
        "settings that were chosen together share it, and fewer than eight tell nothing. "
        "What is far from the others stands at the edge."
    )


def _progress(front: Front, trials: Sequence[Trial]) -> dict[str, Any]:
    """What the front covers after each trial, on validation."""
    seconds = accumulate(trial.seconds for trial in trials)
    objectives = [name for name in ("latency", "size") if name in front.objectives]
    return {
        "ids": [trial.id for trial in trials],
        "minutes": [so_far / 60 for so_far in seconds],
        "areas": {name: _areas_over_time(trials, front, name) for name in objectives},
    }


def _areas_over_time(trials: Sequence[Trial], front: Front, objective: str) -> list[float]:
    name = front.hardware["name"]

    def points(trial: Trial) -> list[tuple[float, float]]:
        score = trial.scores.get(name)
        if score is None or score.quality is None:
            return []
        relative = 1 / score.timing.speedup
        if objective == "size":
            relative = (trial.bytes_on(name) or 0) / front.baseline.weight_bytes
        return [(relative, score.quality.drop_validation)]

    so_far = accumulate(map(points, trials), lambda a, b: a + b)
    return [hypervolume(reached, front.scale.worst_drop) for reached in so_far]


def _outcome(trial: Trial, front: Front) -> str:
    if trial.number == 0:
        return "baseline"
    on_front = any(member.id == trial.id for member in front.members)
    return "on the front" if on_front else _OUTCOMES.get(trial.state, trial.state)


def _trial_table(front: Front, trials: Sequence[Trial]) -> str:
    """Every trial that came to an end, as it was scored during the search."""
    metric = front.scale
    gains = ["speedup", *(["compression"] if _sized(front) else [])]
    lost = [f"{metric.lost}, {metric.unit}", "± s.e."]
    names = ["model", "what came of it", *gains, *lost, "MB", "seconds", "what it is", "settings"]
    rows = "".join(_trial_row(trial, front) for trial in trials)
    return _tabled("trials", "All trials, scored on the validation split", names, rows)


def _trial_row(trial: Trial, front: Front) -> str:
    name, size = front.hardware["name"], trial.bytes_on(front.hardware["name"])
    score = trial.scores.get(name)
    timing, quality = (score.timing, score.quality) if score else (None, None)
    outcome = _outcome(trial, front) + (f": {_placeless(trial.reason)}" if trial.reason else "")
    settings = _differing(trial.candidate).items()
    cells = (
        trial.id,
        outcome + (f", {CONSTANT}" if quality and quality.constant else ""),
        f"{timing.latency_ms.about}{timing.speedup:.2f}x" if timing else "-",
        *([f"{front.baseline.weight_bytes / size:.2f}x" if size else "-"] if _sized(front) else []),
        f"{quality.drop_validation:.2f}" if quality else "-",
        f"{quality.drop_validation_stderr:.2f}" if quality else "-",
        f"{size / 1e6:.1f}" if size else "-",
        f"{trial.seconds:.0f}",
        describe_sizes(trial.sizes),
        ", ".join(f"{setting} {_key(value)}" for setting, value in settings) or "-",
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _tabled(kind: str, caption: str, names: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _time(front: Front, trials: Sequence[Trial]) -> str:
    """A strip of all trials in their order, as wide as they took long, and what each outcome
    took."""
    outcomes = [_outcome(trial, front) for trial in trials]
    total = sum(trial.seconds for trial in trials) or 1.0
    strip = "".join(
        f'<span class="{outcome.replace(" ", "-")}" style="flex-grow: {trial.seconds:.1f}" '
        f'title="{trial.id}: {clock(trial.seconds)}, {outcome}"></span>'
        for trial, outcome in zip(trials, outcomes, strict=True)
        if trial.seconds
    )
    rows = ""
    for outcome in dict.fromkeys(outcomes):
        taken = [t.seconds for t, of in zip(trials, outcomes, strict=True) if of == outcome]
        share = f"{100 * sum(taken) / total:.0f} %"
        key = f'<span class="key {outcome.replace(" ", "-")}"></span>{outcome}'
        cells = (str(len(taken)), clock(sum(taken)), share)
        rows += f"<tr><td>{key}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    table = _tabled("time", "Time by what came of it", ["outcome", "trials", "time", "share"], rows)
    return f'<div class="strip" aria-hidden="true">{strip}</div>{table}'


def _choices(front: Front, axis: _Axis) -> list[dict[str, Any]]:
    """What ``Front.choose`` says as the budget of an axis grows, beside the other limits of the
    search: from each budget in ascending order the model, or why there is none."""
    members, by_latency = front.members, axis.timed is not None
    values = {place["value"] for member in members if (place := axis.at(member, front))}
    highs = {member.latency_ms.interval[1] for member in members if by_latency}
    steps = sorted(values | highs)
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
    if axis.timed is not None:
        balanced = front.balanced_by("latency").latency_ms.interval[1]
        return front.budget.get("max_latency_ms", balanced)
    return front.budget.get("max_bytes", front.balanced_by("size").weight_bytes) / 1e6

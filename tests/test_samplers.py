"""Samplers in another process and under a budget; what each promises is in ``test_conformance``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.candidate import Value, freeze, thaw
from autocompress.engine.samplers import SAMPLERS, sampler
from autocompress.engine.samplers.local import LocalSampler
from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.interfaces import Sampler
from autocompress.search_space import Choices, SearchSpace
from autocompress.techniques import SETTINGS

SPACE = SearchSpace.from_mapping(
    "test",
    {
        "layers": {"keep": [1.0, 0.5, [0, 2]], "rule": ["top", "bottom"]},
        "width": {"latency": [1.0, 0.5]},
        "heads": {
            "keep": {"low": 0.1, "high": 0.7, "step": 0.2},
            "importance": "fisher",
            "allocation": "uniform",
        },
        "recovery": {
            "steps": {"low": 0, "high": 40, "step": 10},
            "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "objectives": [["logits"], ["hidden-states"]],
            "temperature": {"low": 1.0, "high": 4.0},
        },
        "quantization": {
            "scheme": ["fp32", "int8-dynamic", "int4-weights"],
            "block_size": [32, 128],
        },
        "corners": [
            {
                "heads": {"keep": 0.5, "allocation": "uniform"},
                "quantization": {"scheme": "int8-dynamic"},
            },
            {
                "layers": {"keep": [0, 2]},
                "heads": {"keep": 0.1, "allocation": "uniform"},
                "recovery": {"steps": 40},
            },
            {
                "layers": {"keep": 0.5, "rule": "top"},
                "heads": {"keep": 0.3, "allocation": "uniform"},
            },
        ],
    },
)


def make(algorithm: str, seed: int, space: SearchSpace = SPACE, devices: int = 1) -> Sampler:
    return sampler(algorithm, space, seed, devices + 1)


def play(algorithm: str, seed: int, count: int, devices: int = 1) -> list[dict[str, Value]]:
    """The points proposed when every third misses the budget."""
    sampler, points = make(algorithm, seed, devices=devices), []
    for i in range(count):
        handle, point = sampler.ask()
        points.append(point)
        width = SETTINGS.candidate(point).number("heads.keep", 0.5)
        latencies = [width, 1 - width / 2, 0.5][:devices]
        sampler.tell(handle, (*latencies, 1 - width**2), violation=float(i % 3 == 2))
    return points


def test_the_same_seed_proposes_the_same_in_another_process() -> None:
    code = """
import json
from tests.test_samplers import SAMPLERS, play, thaw
points = [play(algorithm, 3, 30) for algorithm in SAMPLERS if algorithm != "gp"]
thawed = [
    [{name: thaw(value) for name, value in point.items()} for point in some] for some in points
]
print(json.dumps(thawed))
"""
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", code]
    there = subprocess.run(
        command, cwd=root, env=environment, check=True, capture_output=True, text=True
    ).stdout
    here = [
        [{name: thaw(value) for name, value in point.items()} for point in points]
        for points in (play(a, 3, 30) for a in SAMPLERS if a != "gp")
    ]
    assert json.loads(there) == here


@pytest.mark.parametrize(
    ("values", "ordinal"),
    [([800, 0, 1600, 200], True), ([0.5, 1.0, [0, 2]], False), (["fp32", "int8-static"], False)],
)
def test_numbers_to_choose_from_are_in_order_for_tpe(values: list[Any], ordinal: bool) -> None:
    """So that what it learns of one tells of its neighbours; names and lists have none."""
    name = {800: "recovery.steps", 0.5: "layers.keep", "fp32": "quantization.scheme"}[values[0]]
    section, key = name.split(".")
    space = SearchSpace.from_mapping("test", {section: {key: values}})
    sampler = OptunaSampler(space, "tpe", 0)
    points = dict(sampler.ask() for _ in range(40))
    [kind] = {type(trial.distributions[name]) for trial, _ in sampler.running.values()}
    assert kind.__name__ == ("IntDistribution" if ordinal else "CategoricalDistribution")
    assert {point[name] for point in points.values()} == {freeze(value) for value in values}
    if ordinal:
        proposals = [trial for trial, _ in sampler.running.values()]
        assert {t.params[name]: points[t.number][name] for t in proposals} == dict(
            enumerate(sorted(values))
        )


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
@pytest.mark.parametrize("seed", range(3))
def test_the_budget_is_heeded(seed: int, algorithm: str) -> None:
    """Wider models are better, but those of more than 0.5 in all miss the budget; by chance 2.5 of
    20 are within."""
    share = {"keep": {"low": 0.0, "high": 1.0}}
    rates = {"learning_rate": {"low": 1e-3, "high": 0.1}, "steps": 10}
    space = SearchSpace.from_mapping("test", {"heads": share, "ffn": share, "recovery": rates})

    def within(limit: float) -> int:
        sampler, widths = make(algorithm, seed, space), []
        for _ in range(64):
            handle, point = sampler.ask()
            candidate = SETTINGS.candidate(point)
            widths.append(candidate.number("heads.keep") + candidate.number("ffn.keep"))
            sampler.tell(handle, (0.5, 2 - widths[-1]), violation=max(0.0, widths[-1] - limit))
        return sum(width <= 0.5 for width in widths[-20:])

    assert within(limit=0.5) > 4 > within(limit=2.0)


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2", "random"])
def test_a_point_is_learned_as_if_it_had_been_asked_for(algorithm: str) -> None:
    space = replace(SPACE, corners=())
    asking, learning = (OptunaSampler(space, algorithm, 3) for _ in range(2))
    for i in range(24):
        handle, point = asking.ask()
        asking.tell(handle, (0.5, i / 24), violation=i % 2)
        learning.learn(SETTINGS.complete(point), (0.5, i / 24), violation=i % 2)
    learning.learn({"heads.keep": 0.9}, (0.0, 0.0))
    pairs = zip(asking.study.trials, learning.study.trials, strict=True)
    for asked, learned in pairs:
        assert learned.state.is_finished() and asked.params == learned.params
        assert (asked.distributions, asked.values) == (learned.distributions, learned.values)
        assert asked.constraints == learned.constraints == {"budget": asked.number % 2}


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
@pytest.mark.parametrize("seed", range(3))
def test_what_was_learned_leads(seed: int, algorithm: str) -> None:
    """Wider models are better, but those of more than 0.5 in all miss the budget, as another worker
    found: of the first points, by chance, 2 of 16 are within."""
    share = {"keep": {"low": 0.0, "high": 1.0}}
    rates = {"learning_rate": {"low": 1e-3, "high": 0.1}, "steps": 10}
    space = SearchSpace.from_mapping("test", {"heads": share, "ffn": share, "recovery": rates})

    def within(learned: int) -> int:
        sampler, other, widths = make(algorithm, seed, space), make("random", 9, space), []
        for i in range(learned + 16):
            handle, point = (sampler if i >= learned else other).ask()
            candidate = SETTINGS.candidate(point)
            width = candidate.number("heads.keep") + candidate.number("ffn.keep")
            losses, violation = (0.5, 2 - width), max(0.0, width - 0.5)
            if i < learned:
                sampler.learn(point, losses, violation)
            else:
                widths.append(width)
                sampler.tell(handle, losses, violation)
        return sum(width <= 0.5 for width in widths)

    assert within(learned=96) > 6 >= within(learned=0)


SQUARE = SearchSpace.from_mapping(
    "test", {name: {"keep": {"low": 0.0, "high": 1.0, "step": 0.125}} for name in ("heads", "ffn")}
)
"""81 points."""


def outcome(point: Mapping[str, Value]) -> tuple[tuple[float, float], float]:
    """Wider models are better, but those of more than 0.5 in all miss the budget."""
    candidate = SETTINGS.candidate(point)
    width = candidate.number("heads.keep") + candidate.number("ffn.keep")
    return (0.5, 2 - width), max(0.0, width - 0.5)


@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_points_asked_for_together_differ(algorithm: str) -> None:
    """After so many that the best are known, which TPE would propose over and over."""
    told, count = (10, 3) if algorithm == "gp" else (40, 10)
    asked = make(algorithm, 4, SQUARE)
    for _ in range(told):
        handle, point = asked.ask()
        asked.tell(handle, *outcome(point))
    points = [tuple(asked.ask()[1].items()) for _ in range(count)]
    assert len(set(points)) == len(points)


@pytest.mark.parametrize("seed", range(3))
def test_tpe_knows_what_runs(seed: int) -> None:
    """It hardly proposes it again; else it does so ten times and more."""
    sampler = OptunaSampler(SQUARE, "tpe", seed)
    for _ in range(40):
        handle, point = sampler.ask()
        sampler.tell(handle, *outcome(point))
    for _ in range(10):
        sampler.ask()
    assert len(sampler.study.trials) <= 50 + 2


def test_gp_learns_of_every_setting() -> None:
    """Also of those that mean nothing in some points, which are missing in them: no setting is
    drawn beside the model."""
    sampler = OptunaSampler(SPACE, "gp", 0)
    other = make("random", 3)
    for _ in range(4):
        sampler.learn(other.ask()[1], (0.5, 0.5))
        handle, _point = sampler.ask()
        sampler.tell(handle, (0.5, 0.5))
    trial = sampler.study.ask()
    assert set(trial.relative_params) == {
        p.name for p in SPACE.parameters if not isinstance(p.values, Choices) or p.values.values[1:]
    }


def place(point: Mapping[str, Value]) -> tuple[float, float]:
    candidate = SETTINGS.candidate(point)
    return candidate.number("heads.keep"), candidate.number("ffn.keep")


def step(one: tuple[float, float], other: tuple[float, float]) -> float:
    """By how much the setting that differs most differs."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_local_takes_a_step_from_the_front(seed: int) -> None:
    """Here fewer heads and fewer neurons are better, of points that have 1 in all; it never
    proposes what it knows."""
    sampler = LocalSampler(SQUARE, seed)
    sampler.learn({"heads.keep": 0.75, "ffn.keep": 0.75}, (0.75, 0.75))
    known, within = {(0.75, 0.75)}, {(0.75, 0.75)}
    for i in range(30):
        handle, point = sampler.ask()
        heads, ffn = here = place(point)
        assert here not in known
        front = [p for p in within if not any(h <= p[0] and f <= p[1] for h, f in within - {p})]
        assert i < 6 or min(step(here, other) for other in front) == 0.125
        known.add(here)
        within |= {here} if heads + ffn >= 1 else set()
        sampler.tell(handle, (heads, ffn), violation=max(0.0, 1 - heads - ffn))


def test_local_goes_where_least_was_tried() -> None:
    """A front of three points has its neighbours tried in turn."""
    sampler = LocalSampler(SQUARE, 0)
    for _ in range(6):
        sampler.ask()
    front = [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]
    for heads, ffn in front:
        sampler.learn({"heads.keep": heads, "ffn.keep": ffn}, (heads, -ffn))
    places = [place(sampler.ask()[1]) for _ in range(6)]
    assert [step(*pair) for pair in zip(places, front * 2, strict=True)] == [0.125] * 6


def test_tpe_forgets_the_worst_of_what_is_old() -> None:
    """So that asking takes no longer after thousands of outcomes than after hundreds."""
    sampler = OptunaSampler(SQUARE, "tpe", 0)
    for i in range(300):
        good = i % 3 == 0
        losses = (0.1, 0.1) if good else (0.9, 0.9)
        sampler.learn({"heads.keep": 0.5, "ffn.keep": 0.5}, losses, violation=0.0)
    left = sampler.study.get_trials(deepcopy=False)
    assert len(left) == 256 and [t.number for t in left][-100:] == [*range(200, 300)]
    assert sum(trial.values == [0.1, 0.1] for trial in left) == 100

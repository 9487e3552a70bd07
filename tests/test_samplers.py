"""Conformance of samplers; a new one is one row more in ``SAMPLERS``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.candidate import Value, thaw
from autocompress.engine.samplers import SAMPLERS
from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.interfaces import Sampler
from autocompress.search_space import Choices, Parameter, SearchSpace
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
    return OptunaSampler(space, algorithm, seed, devices)


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


def allowed(parameter: Parameter, value: Value) -> bool:
    values = parameter.values
    if isinstance(values, Choices):
        return value in values.values
    assert isinstance(value, int | float)
    steps = (value - values.low) / values.step if values.step else 0
    return values.low <= value <= values.high and abs(steps - round(steps)) < 1e-9


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_never_leaves_the_space(algorithm: str, devices: int) -> None:
    points = play(algorithm, 0, 40, devices)
    for point in points:
        active = [
            parameter
            for parameter in SPACE.parameters
            if parameter.setting.when(SETTINGS.complete(point))
        ]
        assert list(point) == [parameter.name for parameter in active]
        assert all(allowed(parameter, point[parameter.name]) for parameter in active)
        assert ("heads.keep" in point) == (point["width.latency"] == 1.0)
    for parameter in SPACE.parameters:
        if isinstance(parameter.values, Choices):
            assert {point[parameter.name] for point in points if parameter.name in point} == set(
                parameter.values.values
            )


@pytest.mark.parametrize("algorithm", SAMPLERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_corners_come_first_in_order(algorithm: str, seed: int) -> None:
    proposed = [SPACE.candidate(point) for point in play(algorithm, seed, len(SPACE.corners))]
    assert proposed == [SPACE.candidate(corner) for corner in SPACE.corners]


@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_the_seed_decides(algorithm: str) -> None:
    for devices in (1, 2):
        assert play(algorithm, 1, 20, devices) == play(algorithm, 1, 20, devices)
        assert play(algorithm, 1, 20, devices)[3:] != play(algorithm, 2, 20, devices)[3:]


def test_the_same_seed_proposes_the_same_in_another_process() -> None:
    code = """
import json
from tests.test_samplers import SAMPLERS, play, thaw
points = [play(algorithm, 3, 30) for algorithm in SAMPLERS]
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
        [{name: thaw(value) for name, value in point.items()} for point in play(a, 3, 30)]
        for a in SAMPLERS
    ]
    assert json.loads(there) == here


@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_takes_points_that_all_miss(algorithm: str) -> None:
    sampler = make(algorithm, 0)
    for _ in range(20):
        handle, point = sampler.ask()
        assert SPACE.candidate(point)
        sampler.tell(handle, (1.0, 100.0), 1.0)


@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_takes_outcomes_in_any_order(algorithm: str) -> None:
    sampler = make(algorithm, 0)
    asked = [sampler.ask() for _ in range(12)]
    assert len({handle for handle, _ in asked}) == 12
    for handle, _ in reversed(asked):
        sampler.tell(handle, (0.5, 0.25))
    assert SPACE.candidate(sampler.ask()[1])


@pytest.mark.parametrize("seed", range(3))
def test_tpe_heeds_the_budget(seed: int) -> None:
    """Wider models are better, but those wider than 0.3 miss the budget; by chance 6 of 20 are
    within."""
    space = SearchSpace.from_mapping("test", {"heads": {"keep": {"low": 0.0, "high": 1.0}}})

    def within(limit: float) -> int:
        sampler, widths = make("tpe", seed, space), []
        for _ in range(50):
            handle, point = sampler.ask()
            widths.append(SETTINGS.candidate(point).number("heads.keep"))
            sampler.tell(handle, (0.5, 1 - widths[-1]), violation=max(0.0, widths[-1] - limit))
        return sum(width <= 0.3 for width in widths[-20:])

    assert within(limit=0.3) > 6 > within(limit=1.0)

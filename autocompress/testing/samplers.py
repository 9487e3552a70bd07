"""What a sampler promises."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from autocompress.candidate import Value
from autocompress.interfaces import Sampler
from autocompress.search_space import Choices, SearchSpace
from autocompress.testing.suite import Suite

SPACE = SearchSpace.from_mapping(
    "conformance",
    {
        "layers": {"keep": [1.0, 0.5, [0, 2]], "rule": ["top", "bottom"]},
        "width": {"latency": [1.0, 0.5]},
        "heads": {"keep": {"low": 0.1, "high": 0.7, "step": 0.2}},
        "recovery": {
            "steps": {"low": 0, "high": 40, "step": 10},
            "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "objectives": [["logits"], ["hidden-states"]],
        },
        "quantization": {"scheme": ["fp32", "int4-weights"], "block_size": [32, 128]},
        "corners": [
            {"heads": {"keep": 0.5}, "quantization": {"scheme": "int4-weights"}},
            {"layers": {"keep": [0, 2]}, "heads": {"keep": 0.1}, "recovery": {"steps": 40}},
        ],
    },
)
"""Choices, ranges, steps and orders of magnitude; settings that mean nothing beside others."""
Make = Callable[[SearchSpace, int, int], Sampler]


class SamplerSuite(Suite):
    """A sampler proposes the corners first, and then points of the space and no others, whatever
    it is told; the same ones again from the same seed.

    Attributes:
        members: by name, what makes a sampler of a space, a seed and the number of objectives.
        trials: many.
    """

    members: ClassVar[Mapping[str, Make]] = {}
    trials: ClassVar[int] = 60

    @pytest.mark.parametrize("objectives", [2, 3])
    def test_never_leaves_the_space(self, member: Make, objectives: int) -> None:
        """Settings that mean nothing beside the others may be missing, and no others; in many
        trials every choice comes."""
        points = _played(member, 0, self.trials, objectives)
        parameters = {parameter.name: parameter for parameter in SPACE.parameters}
        for point in points:
            complete = SPACE.settings.complete(point)
            assert set(point) <= set(parameters)
            for name, parameter in parameters.items():
                if name in point:
                    assert parameter.contains(point[name])
                else:
                    assert not parameter.setting.when(complete)
            assert SPACE.candidate(point)
        for name, parameter in parameters.items():
            if isinstance(parameter.values, Choices):
                drawn = {point[name] for point in points if name in point}
                assert drawn == set(parameter.values.values)

    def test_corners_come_first(self, member: Make) -> None:
        candidates = [SPACE.candidate(point) for point in _played(member, 0, len(SPACE.corners))]
        assert candidates == [SPACE.candidate(corner) for corner in SPACE.corners]

    def test_the_seed_decides(self, member: Make) -> None:
        first, again, other = (_played(member, seed, 16) for seed in (1, 1, 2))
        assert first == again != other

    def test_a_space_without_corners_is_searched(self, member: Make) -> None:
        space = SearchSpace.from_mapping("test", {"layers": {"keep": [1.0, 0.5]}})
        points = _played(member, 0, 12, space=space)
        assert {point["layers.keep"] for point in points} == {1.0, 0.5}

    @pytest.mark.parametrize("every", [1, 3])
    def test_takes_failures(self, member: Make, every: int) -> None:
        """Of all trials, or of every third."""
        sampler = member(SPACE, 0, 2)
        for i in range(16):
            handle, point = sampler.ask()
            assert SPACE.candidate(point)
            failed = i % every == 0
            sampler.tell(handle, (1.0, 100.0) if failed else (0.5, 1.0), float(failed))

    def test_takes_outcomes_in_any_order(self, member: Make) -> None:
        """Several points, which differ, may be asked for before any is told of."""
        sampler = member(SPACE, 0, 2)
        asked = [sampler.ask() for _ in range(12)]
        assert len({handle for handle, _ in asked}) == len(asked)
        assert len({SPACE.candidate(point) for _, point in asked}) == len(asked)
        for handle, _ in reversed(asked):
            sampler.tell(handle, (0.5, 0.25))
        assert SPACE.candidate(sampler.ask()[1])

    def test_learns_of_points_that_it_did_not_ask_for(self, member: Make) -> None:
        """Between its own; of settings that the space does not vary it takes no notice, and of
        points outside of it neither."""
        others = _played(member, 7, 16)

        def mixed(*strays: Mapping[str, Value]) -> list[dict[str, Value]]:
            sampler, points = member(SPACE, 0, 2), []
            for i, other in enumerate(others):
                handle, point = sampler.ask()
                points.append(point)
                complete = SPACE.settings.complete(other)
                sampler.learn(complete, _losses(other, 2), violation=float(i % 3 == 1))
                for stray in strays:
                    sampler.learn(stray, (0.0, 0.0))
                _tell(sampler, handle, point, i, 2)
            return points

        points = mixed()
        candidates = [SPACE.candidate(point) for point in points]
        corners = [SPACE.candidate(corner) for corner in SPACE.corners]
        assert candidates[: len(corners)] == corners
        assert mixed({"heads.keep": 0.9}, {"heads.keep": 0.5, "layers.keep": 0.75}) == points

    def test_asking_stays_within_reason_over_many_trials(self, member: Make) -> None:
        """By calls that are made: ``trials`` behind it, a proposal takes at most ten times those
        that it takes after a quarter of them."""
        sampler, calls = member(SPACE, 0, 2), []
        for i in range(self.trials + 1):
            with _Counting() as counted:
                handle, point = sampler.ask()
            calls.append(counted.calls)
            _tell(sampler, handle, point, i, 2)
        quarter = len(calls) // 4
        assert sorted(calls[-5:])[2] <= 10 * sorted(calls[quarter : quarter + 5])[2]


class _Counting:
    """Calls of functions inside the block."""

    calls = 0

    def __enter__(self) -> _Counting:
        self.before = sys.getprofile()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self.before)

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        self.calls += event in ("call", "c_call")


def _played(
    make: Make, seed: int, count: int, objectives: int = 2, space: SearchSpace = SPACE
) -> list[dict[str, Value]]:
    """The points proposed when every third fails."""
    sampler, points = make(space, seed, objectives), []
    for i in range(count):
        handle, point = sampler.ask()
        points.append(point)
        _tell(sampler, handle, point, i, objectives)
    return points


def _tell(
    sampler: Sampler, handle: int, point: Mapping[str, Value], i: int, objectives: int
) -> None:
    sampler.tell(handle, _losses(point, objectives), violation=float(i % 3 == 2))


def _losses(point: Mapping[str, Value], objectives: int) -> tuple[float, ...]:
    width = SPACE.settings.candidate(point).number("heads.keep", 0.5)
    return (width, 1 - width**2, 0.5)[:objectives]

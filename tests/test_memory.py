"""The memory limit of a profile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress import HardwareProfile, RequestUnmet, SearchSpace, search
from autocompress.journal import Run
from autocompress.scores import Timing
from tests.additive_device import AdditiveDevice, Connected
from tests.searching import CPU, scheme, space
from tests.test_several_devices import DEPTH, OLD, Farm

PROFILE = HardwareProfile.load("cpu-1-thread")
QUICK = replace(PROFILE, trial_seconds=0.1, final_seconds=0.1, target_precision=0.5)


INT8 = SearchSpace.from_mapping("test", {"quantization": {"scheme": ["int8-dynamic"]}})


class Hungry(AdditiveDevice):
    """150 MB for every model but those in int8, which take 90."""

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        first, rest = super().time(baseline, models, final=final)

        def eaten(path: Path) -> int:
            scheme = json.loads((path / "autocompress.json").read_text())["quantization"]["scheme"]
            return 90_000_000 if scheme.startswith("int8") else 150_000_000

        timings = [
            replace(timing, memory_bytes=eaten(path))
            for timing, path in zip(rest, models, strict=True)
        ]
        return replace(first, memory_bytes=eaten(baseline)), timings


def test_a_model_that_needs_too_much_memory_is_over_budget(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    space = SearchSpace.from_mapping(
        "test",
        {
            "layers": {"keep": [0.5]},
            "recovery": {"steps": 40},
            "quantization": {"scheme": ["fp32", "int8-dynamic"]},
        },
    )
    profile = replace(PROFILE, memory_limit_mb=100.0)
    search_result = search(
        tiny_model, data_file, profile, space, tmp_path / "run", trials=1, connect=Connected(Hungry)
    )
    assert [trial.asked for trial in search_result.trials] == [None, 0, None, 2]
    states = {scheme(trial): trial for trial in search_result.trials[2:]}
    assert states["int8-dynamic"].state == "complete"
    refused = states["fp32"]
    assert (refused.state, refused.reason) == (
        "over-budget",
        "150 MB of memory at the peak, the limit is 100",
    )
    assert (refused.rungs, refused.path) == ((), None)  # not trained, and no files are kept
    assert {scheme(member) for member in search_result.front.members} == {"int8-dynamic"}


@pytest.mark.parametrize("limit", [149.9, 150.0])
def test_the_limit_is_in_millions_of_bytes(
    tiny_model: Path, data_file: Path, tmp_path: Path, limit: float
) -> None:
    space = SearchSpace.from_mapping("test", {"layers": {"keep": [0.5]}})
    profile = replace(PROFILE, memory_limit_mb=limit)
    if limit < 150:
        with pytest.raises(
            RequestUnmet,
            match=(
                r"none of 1 candidates meets the budget; the nearest is t00\d, limited by its "
                r"memory:"
            ),
        ):
            search(
                tiny_model,
                data_file,
                profile,
                space,
                tmp_path / "run",
                trials=1,
                connect=Connected(Hungry),
            )
    else:
        search_result = search(
            tiny_model,
            data_file,
            profile,
            space,
            tmp_path / "run",
            trials=1,
            connect=Connected(Hungry),
        )
        assert search_result.trials[1].state == "complete"


def test_memory_that_is_too_much_only_at_the_end_is_named(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    class Later(AdditiveDevice):
        def time(
            self, baseline: Path, models: Sequence[Path], *, final: bool
        ) -> tuple[Timing, list[Timing]]:
            first, rest = super().time(baseline, models, final=final)
            eaten = 150_000_000 if final else 10_000_000
            return first, [replace(timing, memory_bytes=eaten) for timing in rest]

    profile = replace(PROFILE, memory_limit_mb=100.0)
    with pytest.raises(RequestUnmet, match=r"limited by its memory"):
        search(
            tiny_model,
            data_file,
            profile,
            INT8,
            tmp_path / "run",
            trials=1,
            connect=Connected(Later),
        )


def test_the_sampler_is_told_that_a_model_needs_too_much_memory(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a latency limit: by a violation, else the sampler takes fast models that do not fit
    for good ones."""
    from autocompress.engine.samplers.optuna_sampler import OptunaSampler

    told: list[float] = []

    class Listening(OptunaSampler):
        def tell(self, handle: int, losses: Sequence[float], violation: float = 0.0) -> None:
            told.append(violation)
            super().tell(handle, losses, violation)

    profile = replace(PROFILE, memory_limit_mb=100.0)
    space = SearchSpace.from_mapping("test", {"layers": {"keep": [0.5]}})
    monkeypatch.setattr("autocompress.engine.samplers.optuna_sampler.OptunaSampler", Listening)
    with pytest.raises(RequestUnmet):
        search(
            tiny_model,
            data_file,
            profile,
            space,
            tmp_path / "run",
            trials=1,
            connect=Connected(Hungry),
        )
    assert told and told[0] > 0


def test_memory_is_really_measured(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """Half a megabyte is less than the int8 embedding alone, 30522 * 32 bytes."""
    with pytest.raises(RequestUnmet, match="limited by its memory"):
        search(
            tiny_model,
            data_file,
            replace(QUICK, memory_limit_mb=0.5),
            INT8,
            tmp_path / "run",
            trials=1,
        )
    baseline, trial = Run(tmp_path / "run").trials()
    assert trial.state == "over-budget"
    assert trial.reason is not None and trial.reason.endswith(
        " MB of memory at the peak, the limit is 0.5"
    )
    eaten = trial.scores["cpu-1-thread"].timing.memory_bytes
    assert eaten is not None and 30522 * 32 < eaten < 500e6
    assert trial.reason.startswith(f"{eaten / 1e6:.0f} MB")
    uncut = baseline.scores["cpu-1-thread"].timing.memory_bytes
    assert uncut is not None and uncut > eaten  # in fp32 the embedding alone is 3.9 MB


def test_of_two_devices_the_one_with_the_limit_takes_no_model(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """Every model takes 1 MB."""
    tight = replace(OLD, memory_limit_mb=0.5)
    search_result = search(
        tiny_model, data_file, (CPU, tight), space(DEPTH), tmp_path / "a", trials=2, connect=Farm()
    )
    assert {trial.state for trial in search_result.trials} == {"complete"}
    assert search_result.front.members and search_result.fronts["old"].members == ()
    with pytest.raises(RequestUnmet, match="limited by its memory"):
        search(tiny_model, data_file, tight, space(DEPTH), tmp_path / "b", trials=2, connect=Farm())
    reasons = {trial.reason for trial in Run(tmp_path / "b").trials()[1:]}
    assert reasons == {"1 MB of memory at the peak, the limit is 0.5"}

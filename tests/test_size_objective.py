"""Bytes as an objective and as a limit of a whole search."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autocompress import Limits, RequestUnmet, SearchResult, console, load_front, search
from autocompress.artifact import onnx_file
from autocompress.cli import main
from autocompress.engine.verification import losses
from autocompress.journal import Run, Trial
from autocompress.pareto import METRICS, OBJECTIVES, Front, Member, hypervolume
from autocompress.scores import Quality
from tests.conftest import SizeDevice
from tests.searching import scheme, space, timed

SCHEMES = {"quantization": {"scheme": ["fp32", "fp16", "int8-dynamic", "int4-weights"]}}
"""fp16 gains nothing on a CPU by its profile."""


class Unpacking(SizeDevice):
    """The smaller the file the longer it takes, as where weights are stored in fewer bits than they
    are computed in."""

    def milliseconds(self, model: Path) -> float:
        return 1e7 / onnx_file(model).stat().st_size


@pytest.fixture(scope="module")
def sized(
    tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchResult:
    """By all three objectives."""
    return search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(SCHEMES),
        tmp_path_factory.mktemp("runs") / "sized",
        connect=Unpacking,
        objectives=OBJECTIVES,
    )


def shown(front: Front) -> str:
    printed = StringIO()
    Console(width=200, file=printed).print(console.front_text(front))
    return printed.getvalue()


def test_what_is_smaller_is_on_the_front_though_it_is_slower(sized: SearchResult) -> None:
    front = sized.front
    schemes = {scheme(member): member for member in front.members}
    smallest = min(sized.trials, key=lambda trial: trial.weight_bytes or 0)
    assert front.objectives == ("latency", "quality", "size")
    assert "fp32" in schemes and smallest.id in {member.id for member in front.members}
    assert schemes[scheme(smallest)].speedup < 1


def test_formats_that_only_save_bytes_are_searched(sized: SearchResult) -> None:
    tried = {scheme(trial) for trial in sized.trials}
    assert tried == set(SCHEMES["quantization"]["scheme"])


def test_the_front_has_the_hypervolume_of_both_pairs(sized: SearchResult) -> None:
    front = sized.front
    uncut, drops = front.baseline, [m.quality.drop_validation for m in front.members]
    by_size = [m.weight_bytes / uncut.weight_bytes for m in front.members]
    by_latency = [1 / m.speedup for m in front.members]
    assert front.size_hypervolume == hypervolume(list(zip(by_size, drops, strict=True)), 5.0)
    assert front.hypervolume == hypervolume(list(zip(by_latency, drops, strict=True)), 5.0)
    assert front.size_hypervolume > 0.5 and front.hypervolume == 0.0
    assert load_front(sized.run) == front


def test_the_table_shows_compression_where_size_is_an_objective(
    sized: SearchResult, whole: SearchResult
) -> None:
    smallest = min(sized.front.members, key=lambda member: member.weight_bytes)
    ratio = sized.front.baseline.weight_bytes / smallest.weight_bytes
    text = shown(sized.front)
    assert "compression" in text and f"{ratio:.2f}x" in text
    assert "compression" not in shown(whole.front)


def test_members_say_what_their_files_hold_and_take_to_load(sized: SearchResult) -> None:
    """The embedding of 30,522 rows of 32 is in the number format that the file is in."""
    held = {scheme(member): member for member in sized.front.members}
    words = sized.front.baseline.embedding_bytes or 0
    assert words == held["fp32"].embedding_bytes and words % (32 * 4) == 0
    for member in (sized.front.baseline, *sized.front.members):
        own = member.embedding_bytes or 0
        assert own in (words, words / 2, words / 4)
        assert 0 < own < member.weight_bytes and (member.load_ms or 0) > 0
        assert f" {(member.weight_bytes - own) / 1e6:.1f} " in shown(sized.front)


def test_the_smallest_within_limits(sized: SearchResult, capsys: Any) -> None:
    run, front = str(sized.run), sized.front
    smallest = min(front.members, key=lambda member: member.weight_bytes)
    worst = max(member.quality.drop_validation for member in front.members)
    assert front.pick(smallest=True) == front.pick(smallest=True, max_drop=100.0) == smallest
    assert front.pick(max_bytes=smallest.weight_bytes) == smallest
    assert main(["pick", run, "--smallest", "--max-drop", f"{worst + 90:.0f}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == smallest.id
    assert main(["pick", run, "--max-size", "1kB"]) == 1
    assert f"{smallest.weight_bytes / 1e6:.3g} MB" in capsys.readouterr().err


def test_by_size_and_quality_alone(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    """The space says so. fp32 is by far the fastest, and as good in fp16."""
    front = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space({"objectives": ["size", "quality"], "quantization": {"scheme": ["fp16"]}}),
        tmp_path / "run",
        connect=Unpacking,
    ).front
    assert front.objectives == ("quality", "size")
    assert [scheme(m) for m in front.members] == ["fp16"]


@pytest.mark.parametrize("limit", [{"max_bytes": 2_000_000}, {"min_compression": 3.0}], ids=str)
def test_a_model_that_is_too_large_is_over_budget(
    limit: dict[str, Any], tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """It is not trained; the embedding alone has 3.9 MB in fp32."""
    values = {
        "layers": {"keep": [0.5]},
        "recovery": {"steps": 40},
        "quantization": {"scheme": ["fp32", "int8-dynamic"]},
    }
    search_result = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(values),
        tmp_path / "run",
        trials=2,
        budget=Limits(**limit),
        connect=SizeDevice,
    )
    states = {scheme(trial): trial for trial in search_result.trials[1:]}
    refused, made = states["fp32"], states["int8-dynamic"]
    size, uncut = refused.weight_bytes or 0, search_result.trials[0].weight_bytes or 0
    reasons = {
        "max_bytes": f"a file of {size / 1e6:.3g} MB, the limit is 2",
        "min_compression": f"{uncut / size:.2f}x smaller, the limit is 3x",
    }
    assert refused.reason == reasons[next(iter(limit))]
    assert (refused.state, refused.rungs, refused.path) == ("over-budget", (), None)
    assert made.state == "complete"
    assert [member.id for member in search_result.front.members] == [made.id]
    assert search_result.front.budget == limit


def test_a_size_that_no_candidate_has(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestUnmet, match=r"limited by its size: .*x\), \S+ MB, not trained$"):
        search(
            tiny_model,
            data_file,
            "cpu-1-thread",
            space({"quantization": {"scheme": ["int8-dynamic"]}}),
            tmp_path / "run",
            budget=Limits(max_bytes=1000),
            connect=SizeDevice,
        )
    assert [t.state for t in Run(tmp_path / "run").trials()] == ["complete", "over-budget"]


def test_losses_by_objective() -> None:
    """As many as the sampler has objectives, quality last."""
    accuracy = METRICS["accuracy"]
    trial = Trial(
        1, {}, "complete", rungs=((0, 1.5),), scores=timed(a=2.0, b=4.0), weight_bytes=1000
    )
    assert losses(trial, accuracy, OBJECTIVES, 4000) == (0.5, 0.25, 0.25, 1.5)
    assert losses(trial, accuracy, ("quality", "size"), 4000) == (0.25, 1.5)
    assert losses(trial, accuracy, ("latency", "quality"), 4000) == (0.5, 0.25, 1.5)
    unseen = Trial(2, {}, "over-budget", predicted={"a": 0.7})
    assert losses(unseen, accuracy, OBJECTIVES, 4000) == (0.7, 1.0, 100.0)


def test_bytes_are_those_that_each_device_held() -> None:
    """One that computes in bf16 holds half of the file; the objective is what the other holds."""
    scores = timed(gpu=2.0, cpu=2.0)
    scores["gpu"] = replace(
        scores["gpu"],
        timing=replace(scores["gpu"].timing, weight_bytes=50),
        quality=Quality(0.9, 1.0, 0.1),
    )
    trial = Trial(
        1,
        {},
        "complete",
        {},
        rungs=((0, 1.0),),
        scores=scores,
        weight_bytes=100,
        path="models/t001",
    )
    assert (trial.bytes_on("gpu"), trial.bytes_on("cpu")) == (50, 100)
    objectives, accuracy = ("quality", "size"), METRICS["accuracy"]
    assert losses(trial, accuracy, objectives, 200) == (0.5, 1.0)
    alone = replace(trial, scores={"gpu": scores["gpu"]})
    assert losses(alone, accuracy, objectives, 200) == (0.25, 1.0)
    assert losses(replace(trial, scores={}), accuracy, objectives, 200) == (0.5, 1.0)
    assert Member.of(replace(trial, sizes={"layers": [0]}), "gpu").weight_bytes == 50

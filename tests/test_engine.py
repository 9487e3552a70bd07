"""The whole search on a tiny model and real sentences, with devices that do not depend on the
machine."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from autocompress.artifact import load_model, scheme_of
from autocompress.candidate import Candidate, Value
from autocompress.engine import proposing
from autocompress.engine.attempt import Attempt
from autocompress.engine.listener import Silent
from autocompress.engine.loop import SearchResult
from autocompress.engine.scoring import Scorer
from autocompress.errors import CandidateFailed, RequestUnmet, SearchFailed
from autocompress.files import sha256
from autocompress.graphs.runtime import predict
from autocompress.journal import Run, Trial
from autocompress.limits import Limits
from autocompress.pareto import load_front, load_fronts, non_dominated
from autocompress.scores import Timing
from autocompress.searching import search
from autocompress.shipping import Graph
from autocompress.tasks.data import Columns, load_examples
from tests.conftest import SizeDevice
from tests.searching import CPU, SPACE, Scripted, scheme, space


def test_the_front_is_what_its_files_are(whole: SearchResult, data_file: Path) -> None:
    front = load_front(whole.run)
    assert front == whole.front
    assert front.verified
    assert load_fronts(whole.run) == whole.fronts == {CPU: front}
    assert (front.hardware["name"], front.hardware["lengths"]) == (CPU, [32])
    latencies = [member.latency_ms.value for member in front.members]
    assert latencies == sorted(latencies)
    points = [(member.latency_ms.value, 1 - member.quality.validation) for member in front.members]
    assert non_dominated(points) == list(range(len(points)))
    assert {folder.name for folder in (whole.run / "models").iterdir()} == {
        "t000",
        *(m.id for m in front.members),
    }

    held_out = load_examples(str(data_file), Columns()).test
    for member in front.members:
        folder = whole.run / member.path
        tokenizer = AutoTokenizer.from_pretrained(whole.run / "tokenizer")
        batches = [
            dict(tokenizer([text], return_tensors="np", truncation=True, max_length=64))
            for text, _, _ in held_out
        ]
        answers = predict(folder / "model.onnx", batches).argmax(1) == [
            label for _, _, label in held_out
        ]
        assert member.quality.test == answers.mean()
        assert member.quality.n_test == len(held_out) == 80
        assert member.weight_bytes == (folder / "model.onnx").stat().st_size
        assert member.latency_ms.value == member.weight_bytes / 1e5
        recorded = json.loads((folder / "autocompress.json").read_text())
        assert recorded["candidate"] == member.candidate
        assert recorded["parity"]["fp32_max_abs_difference"] <= 1e-4
        assert recorded["scores"].keys() == {CPU}
        scores = recorded["scores"][CPU]
        assert scores["quality"]["test"] == member.quality.test
        assert (scores["timing"]["speedup"], scores["weight_bytes"]) == (
            member.speedup,
            member.weight_bytes,
        )
        assert scores["lengths"] == [32]
        assert sum(p.numel() for p in load_model(folder).parameters()) <= sum(
            p.numel() for p in load_model(whole.run / "models/t000").parameters()
        )


def test_the_baseline_is_the_teacher_in_fp32(whole: SearchResult) -> None:
    baseline = whole.front.baseline
    assert (baseline.id, baseline.speedup, baseline.quality.drop_test, baseline.path) == (
        "t000",
        1.0,
        0.0,
        "models/t000",
    )
    assert baseline.candidate == {}


def test_drops_are_paired(whole: SearchResult, data_file: Path) -> None:
    held_out = load_examples(str(data_file), Columns()).validation
    labels = np.array([int(label) for _, _, label in held_out])
    compared = 0
    for trial in whole.trials[1:]:
        baseline, score = whole.trials[0].scores[CPU], trial.scores.get(CPU)
        if not score or not score.quality or not baseline.evidence or not score.evidence:
            continue
        a, b = (
            np.unpackbits(np.frombuffer(bytes.fromhex(t), np.uint8), count=80) == labels
            for t in (baseline.evidence, score.evidence)
        )
        differences = a.astype(float) - b
        assert score.quality.drop_validation == pytest.approx(100 * differences.mean())
        assert score.quality.drop_validation_stderr == pytest.approx(
            100 * differences.std(ddof=1) / 80**0.5
        )
        compared += 1
    assert compared >= 3


def test_no_candidate_is_tried_twice(whole: SearchResult) -> None:
    tried = [(trial.student, scheme(trial)) for trial in whole.trials]
    assert len(set(tried)) == len(tried) == 18
    assert whole.trials[1].candidate == {"quantization.scheme": "int8-dynamic"}
    assert (whole.trials[1].student, whole.trials[1].asked) == (whole.trials[0].student, 0)
    assert [trial.number for trial in whole.trials if trial.asked is None] == [0, *range(2, 18, 2)]


@dataclass
class Students(Silent):
    """Hears of every model, while its files are there.

    Args:
        weights: digest of each one's.
    """

    out: Path
    weights: dict[str, str] = field(default_factory=dict)

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        self.weights[trial.id] = sha256(self.out / str(trial.path) / "model.safetensors")


FORMATS = ["fp32", "int8-dynamic", "int8-weights"]
ASKED: list[dict[str, Value]] = [
    {"layers.keep": 0.5, "weights.start": "embeddings", "recovery.steps": 3},
    {"recovery.steps": 2, "quantization.scheme": "int8-weights"},
    {"heads.keep": 0.5, "quantization.scheme": "int8-dynamic"},
]


@pytest.fixture(scope="module")
def in_two_orders(
    tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[SearchResult, Students]]:
    """The same students, asked for in one order and in the other, there in fewer formats."""
    values: dict[str, Any] = {
        "layers": {"keep": [1.0, 0.5]},
        "heads": {"keep": [1.0, 0.5]},
        "weights": {"start": ["copied", "embeddings"]},
        "recovery": {"steps": [0, 2, 3]},
    }
    backwards: list[dict[str, Value]] = [
        chosen | {"quantization.scheme": "int8-dynamic"} for chosen in reversed(ASKED)
    ]
    runs = []
    for order, formats in ((ASKED, FORMATS), (backwards, FORMATS[:2])):
        values["quantization"] = {"scheme": list(formats)}
        heard = Students(tmp_path_factory.mktemp("runs") / "order")
        options: Any = {"sampler": Scripted(*order), "trials": 3, "listener": heard}
        with pytest.MonkeyPatch.context() as patched:  # every format is scored
            patched.setattr(Attempt, "_answers_alike", lambda *_: False)
            result = search(
                tiny_model, data_file, CPU, space(values), heard.out, connect=SizeDevice, **options
            )
        runs.append((result, heard))
    return runs


def test_a_student_is_trained_once_for_all_its_number_formats(
    in_two_orders: list[tuple[SearchResult, Students]],
) -> None:
    result, heard = in_two_orders[0]
    assert [trial.asked for trial in result.trials] == [
        None,
        0,
        0,
        *[None, 3, 3, None, 6, 6, None, 9, 9],
    ]
    events = [json.loads(line) for line in (result.run / "events.jsonl").read_text().splitlines()]
    sealed = [event["student"] for event in events if event["event"] == "sealed"]
    assert len(sealed) == len(set(sealed)) == 4
    for first in (0, 3, 6, 9):
        trials = result.trials[first : first + 3]
        assert len({trial.student for trial in trials}) == 1
        assert len({heard.weights[trial.id] for trial in trials}) == 1
        assert sorted(scheme(trial) for trial in trials) == FORMATS
        assert [trial.seconds > 0 for trial in trials] == [True, first == 0, False]
    assert len(set(heard.weights.values())) == 4
    assert [scheme(result.trials[i]) for i in (3, 6, 9)] == ["fp32", "int8-weights", "int8-dynamic"]


def test_the_same_students_come_of_any_order(
    in_two_orders: list[tuple[SearchResult, Students]],
) -> None:
    one, other = (
        {
            (trial.student, scheme(trial)): (
                trial.candidate,
                heard.weights[trial.id],
                trial.rungs,
                trial.weight_bytes,
                trial.scores[CPU].evidence,
            )
            for trial in result.trials
        }
        for result, heard in in_two_orders
    )
    assert {key: one[key] for key in other} == other
    assert (len(one), len(other)) == (12, 8)


def test_an_uncut_candidate_keeps_its_recovery(
    in_two_orders: list[tuple[SearchResult, Students]],
) -> None:
    result, heard = in_two_orders[0]
    trained = result.trials[6]
    assert trained.candidate == {"recovery.steps": 2, "quantization.scheme": "int8-weights"}
    assert trained.sizes == result.trials[0].sizes
    assert [steps for steps, _ in trained.rungs] == [2]
    assert heard.weights[trained.id] != heard.weights["t000"]


def test_a_failed_trial_is_recorded_and_the_search_goes_on(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    values = {"layers": {"keep": [[0, 9], [0, 3]]}, "quantization": {"scheme": ["fp32"]}}
    outcome = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(values),
        tmp_path / "run",
        trials=10,
        connect=SizeDevice,
    )
    assert {trial.state: trial.reason for trial in outcome.trials} == {
        "complete": None,
        "failed": "layers.keep names layer 9, the model has 4 (0 to 3)",
    }
    assert len(outcome.trials) == 3


class Overflows(SizeDevice):
    """One answer of int8-dynamic files to the validation split is no number."""

    def predict(
        self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        answers = super().predict(model, batches)
        if scheme_of(model) == "int8-dynamic":
            answers[3, 1] = np.nan
        return answers


def test_what_answers_with_no_numbers_fails_and_the_search_goes_on(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is resumed."""
    monkeypatch.setattr(Attempt, "_answers_alike", lambda *_: False)  # every format is scored
    values = {
        "layers": {"keep": [0.5]},
        "quantization": {"scheme": ["int8-dynamic", "fp32", "int8-weights"]},
        "recovery": {"steps": [2]},
    }

    def searched(**more: Any) -> dict[str, str | None]:
        outcome = search(
            tiny_model,
            data_file,
            "cpu-1-thread",
            space(values),
            tmp_path / "run",
            connect=Overflows,
            **more,
        )
        return {f"{trial.id} {scheme(trial)}": trial.reason for trial in outcome.trials}

    first = searched(trials=2)
    again = searched(trials=6, resume=True)
    assert {key: again[key] for key in first} == first
    assert {key.split()[1] for key, why in again.items() if why} == {"int8-dynamic"}
    assert {why for why in again.values() if why} == {"its answers are not finite"}
    assert {key.split()[1] for key, why in again.items() if not why} >= {"fp32", "int8-weights"}


def test_a_format_that_fails_before_training_leaves_the_others(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Graph.ship

    def ship(self: Graph, candidate: Candidate, *more: Any) -> dict[str, float]:
        if candidate.text("quantization.scheme", "fp32") == "int8-dynamic":
            raise CandidateFailed("its answers are not finite")
        return original(self, candidate, *more)

    monkeypatch.setattr(Graph, "ship", ship)
    values = {
        "layers": {"keep": [0.5]},
        "quantization": {"scheme": ["int8-dynamic", "int8-weights"]},
        "recovery": {"steps": [2]},
    }
    out = tmp_path / "run"
    outcome = search(
        tiny_model, data_file, "cpu-1-thread", space(values), out, trials=4, connect=SizeDevice
    )
    cut = {scheme(trial): trial for trial in outcome.trials if "layers.keep" in trial.candidate}
    assert {name: trial.state for name, trial in cut.items()} == {
        "int8-dynamic": "failed",
        "int8-weights": "complete",
    }


def test_if_all_trials_fail_the_search_says_why(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    values = {"layers": {"keep": [[0, 9]]}}
    with pytest.raises(SearchFailed, match=r"all 1 trials failed: t001: layers.keep names layer 9"):
        search(
            tiny_model,
            data_file,
            "cpu-1-thread",
            space(values),
            tmp_path / "run",
            trials=5,
            connect=SizeDevice,
        )


def test_a_small_space_is_tried_whole_and_once(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    outcome = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        "quantization-only",
        tmp_path / "run",
        connect=SizeDevice,
    )
    formats = [(scheme(t), t.candidate.get("quantization.block_size", 32)) for t in outcome.trials]
    weights = [(name, block) for name in ("int4-weights", "int8-weights") for block in (32, 128)]
    others = [("fp32", 32), ("int8-dynamic", 32), ("int8-static", 32)]
    assert sorted(formats) == sorted([*others, *weights])
    assert {trial.state for trial in outcome.trials} <= {"complete", "outdone"}
    assert len({trial.student for trial in outcome.trials}) == 1


class Flipping(SizeDevice):
    """Int8 files answer some of the examples the other way round."""

    flipped = 0

    def predict(
        self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        answers = super().predict(model, batches)
        if scheme_of(model) != "fp32":
            answers[: self.flipped] = answers[: self.flipped, ::-1]
        return answers


class FlippingMany(Flipping):
    flipped = 30


@pytest.mark.parametrize(
    ("device", "objectives", "states"),
    [
        (Flipping, ("latency", "quality"), ["complete", "outdone"]),
        (Flipping, ("quality", "size"), ["complete", "outdone"]),
        (FlippingMany, ("latency", "quality"), ["complete", "complete"]),
    ],
)
def test_a_format_that_another_one_outdoes_is_not_scored(
    device: type[SizeDevice],
    objectives: tuple[str, ...],
    states: list[str],
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
) -> None:
    """Both int8 formats of the uncut model, the faster one first: where that one answers as the
    model itself, the other one can win nothing."""
    formats = {"quantization": {"scheme": ["int8-dynamic", "int8-weights"]}}
    out, options = tmp_path / "run", dict[str, Any](objectives=objectives, trials=1)
    outcome = search(tiny_model, data_file, CPU, space(formats), out, connect=device, **options)
    faster, slower = sorted(outcome.trials[1:3], key=lambda trial: trial.weight_bytes or 0)
    assert [faster.state, slower.state] == states
    if slower.state == "outdone":
        dearer = "slower" if "latency" in objectives else "larger"
        said = f"{faster.id} is no {dearer} and answers as the student itself"
        assert (slower.reason, slower.rungs) == (said, faster.rungs)
        assert slower.path is None and slower.scores[CPU].quality is None


@pytest.mark.parametrize(
    ("plan", "steps", "answers"),
    [("uncut", 0, "baseline"), ("uncut", 40, "own"), ("cut", 40, "own"), ("cut", 0, None)],
)
def test_a_format_is_compared_with_its_own_student(
    plan: str, steps: int, answers: str | None
) -> None:
    """An uncut one that was trained is no longer the baseline."""
    attempt: Any = SimpleNamespace(
        maker=SimpleNamespace(full="uncut"),
        steps=steps,
        scorer=SimpleNamespace(at_rungs=lambda score: score),
        baseline=SimpleNamespace(scores={CPU: "baseline"}),
    )
    student: Any = SimpleNamespace(plan=plan, answers="own" if steps else None)
    assert Attempt._answers_of(attempt, student) == answers


def test_a_latency_budget_is_a_constraint(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    outcome = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        tmp_path / "run",
        trials=6,
        connect=SizeDevice,
        budget=Limits(min_speedup=1.5),
    )
    assert outcome.front.members
    assert outcome.front.budget == {"min_speedup": 1.5}
    assert all(member.speedup >= 1.5 for member in outcome.front.members)
    for trial in outcome.trials[1:]:
        if trial.scores:
            assert (trial.state == "over-budget") == (trial.scores[CPU].timing.speedup < 1.5)
        else:
            assert trial.state == "over-budget"
            assert trial.predicted[CPU] > 1.05 / 1.5
            milliseconds = (
                trial.predicted[CPU] * outcome.trials[0].scores[CPU].timing.latency_ms.value
            )
            assert trial.reason == f"predicted {milliseconds:.3g} ms on {CPU}, so not tried"
        if trial.state == "over-budget":
            assert trial.rungs == ()
            assert trial.path is None
    assert {trial.state for trial in outcome.trials[1:]} >= {"complete", "over-budget"}


def test_a_space_that_holds_nothing_within_the_limits_ends_the_search(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before its time; where something is within them it goes on."""
    monkeypatch.setattr(proposing, "_MOST_REFUSED", 2)
    options: dict[str, Any] = {"connect": SizeDevice, "trials": 3, "time_limit_s": 3600}
    values = {"heads": {"keep": [0.5, 0.25, 0.75]}}
    for speedup, tried in ((99.0, 2), (1.001, 3)):
        run = tmp_path / f"run-{speedup}"
        budget = Limits(min_speedup=speedup)
        nothing = "none of .* candidates meets the budget; the nearest is t0"
        with pytest.raises(RequestUnmet, match=nothing) if tried == 2 else contextlib.nullcontext():
            search(tiny_model, data_file, CPU, space(values), run, budget=budget, **options)
        asked = [trial for trial in Run(run).trials()[1:] if trial.asked is None]
        assert len(asked) == tried


def test_a_budget_that_nothing_meets_names_the_nearest(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        RequestUnmet,
        match=(
            r"none of 7 candidates meets the budget; the nearest is t00[1-7], limited by its "
            r"speedup: .* not trained"
        ),
    ):
        search(
            tiny_model,
            data_file,
            "cpu-1-thread",
            space(),
            tmp_path / "run",
            trials=3,
            connect=SizeDevice,
            budget=Limits(min_speedup=99),
        )
    assert load_front(tmp_path / "run").members == ()


def test_texts_in_two_splits_are_dropped_and_counted(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    lines = data_file.read_text(encoding="utf-8").splitlines()
    test = tmp_path / "test.csv"
    test.write_text("\n".join([lines[0], *lines[1:13], *lines[-12:]]) + "\n", encoding="utf-8")
    values = {"quantization": {"scheme": ["int8-dynamic"]}}
    search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(values),
        tmp_path / "run",
        trials=1,
        connect=SizeDevice,
        test=str(test),
    )
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    dropped = data["dropped"]
    assert data["test"] == 24
    assert dropped["train also in validation or test"] + dropped["validation also in test"] == 24
    assert data["train"] + data["validation"] + 24 == 400


def test_the_sampler_hears_of_every_proposal(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """Of one that was tried before, too: what came of it then."""
    sampler = Scripted({"heads.keep": 0.5}, {"heads.keep": 0.25}, {"heads.keep": 0.5})
    search(
        tiny_model,
        data_file,
        CPU,
        space({"heads": {"keep": [0.5, 0.25]}}),
        tmp_path / "run",
        trials=3,
        sampler=sampler,
        connect=SizeDevice,
    )
    assert sampler.asked > 3 and list(sampler.told) == list(range(1, sampler.asked + 1))
    assert sampler.told[1] == sampler.told[3] != sampler.told[2]


class FailsAtLast(SizeDevice):
    """Cannot time quantized models in the end."""

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        if final and any(scheme_of(model) == "int8-dynamic" for model in models):
            raise CandidateFailed("out of memory")
        return super().time(baseline, models, final=final)


def test_a_model_that_fails_in_the_end_is_left_out(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    values = {
        "layers": {"keep": [0.5]},
        "quantization": {"scheme": ["fp32", "int8-dynamic", "int8-weights"], "block_size": 32},
    }
    said: list[str] = []
    listener = Silent()
    listener.said = lambda line: said.append(line)  # type: ignore[method-assign]
    outcome = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(values),
        tmp_path / "run",
        trials=3,
        connect=FailsAtLast,
        listener=listener,
    )
    schemes = {trial.id: scheme(trial) for trial in outcome.trials}
    left_out = [line.partition(" left out: ") for line in said if "left out" in line]
    assert {(schemes[name], why) for name, _, why in left_out} == {
        ("int8-dynamic", "out of memory")
    }
    assert {schemes[member.id] for member in outcome.front.members} >= {"int8-weights"}
    assert "int8-dynamic" not in {schemes[member.id] for member in outcome.front.members}
    assert all(member.quality.test is not None for member in outcome.front.members)


def test_a_time_limit_that_no_candidate_fits_says_what_is_needed(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """And the run goes on with more."""
    values = {"heads": {"keep": [0.5]}, "recovery": {"steps": 8}}

    def searched(limit_s: float, **more: Any) -> SearchResult:
        asked: dict[str, Value] = {"heads.keep": 0.5}
        given: dict[str, Any] = {"time_limit_s": limit_s, "sampler": Scripted(asked)} | more
        run = tmp_path / "run"
        return search(tiny_model, data_file, CPU, space(values), run, connect=SizeDevice, **given)

    with pytest.raises(SearchFailed, match="is too short to try a candidate") as caught:
        searched(0.5)
    assert re.search(r"takes about 0:\d\d in all", str(caught.value))
    assert len(searched(60, resume=True, trials=1).trials) == 2


def test_unlabelled_share_is_not_searched_without_text(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    values = SPACE | {"recovery": {"steps": [8], "unlabeled_share": [0.0, 0.5]}}
    outcome = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(values),
        tmp_path / "run",
        trials=3,
        connect=SizeDevice,
    )
    assert {trial.state for trial in outcome.trials} <= {"complete", "outdone"}
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]["space"][
        "parameters"
    ]
    assert "recovery.unlabeled_share" not in recorded


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_that_knows_no_padding_is_searched(
    family: str,
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A random one, which is let in for once."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config = AutoConfig.for_model(family, vocab_size=30522, max_position_embeddings=64, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")  # type: ignore[no-untyped-call]
    monkeypatch.setattr(Scorer, "refuse_ignorance", lambda *_: None)
    for path in tiny_model.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    values = {"layers": {"keep": [0.5]}, "heads": {"keep": [0.5]}, "recovery": {"steps": [8]}}
    outcome = search(
        tmp_path / "model",
        data_file,
        "cpu-1-thread",
        space(values),
        tmp_path / "run",
        trials=1,
        connect=SizeDevice,
    )
    assert [trial.state for trial in outcome.trials] == ["complete", "complete"]
    assert outcome.trials[1].sizes is not None and sum(outcome.trials[1].sizes["heads"]) == 4
    assert (
        max(trial.parity["fp32_max_abs_difference"] for trial in outcome.trials if trial.parity)
        <= 1e-4
    )
    loaded: Any = load_model(tmp_path / "run" / "models" / "t000")
    assert loaded.config.pad_token_id == 0

"""The whole search on a tiny model and real sentences, with a timer that does not depend on the machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from autocompress.engine import SearchResult, outclassed, search
from autocompress.errors import RequestUnmet, SearchFailed, UserError
from autocompress.export import load_model
from autocompress.journal import Run, Trial
from autocompress.onnx_runtime import predict
from autocompress.pareto import Budget, load_front, non_dominated
from autocompress.search_space import SearchSpace
from autocompress.tasks.data import Columns, load_examples
from tests.conftest import SizeTimer

SPACE: dict[str, Any] = {
    "layers": {"keep": [1.0, 0.5, 0.25]},
    "heads": {"keep": {"low": 0.0, "high": 1.0, "step": 0.25}},
    "ffn": {"keep": {"low": 0.0, "high": 1.0, "step": 0.25}, "importance": ["fisher", "magnitude"]},
    "recovery": {"steps": [0, 40]},
    "quantization": {"scheme": ["fp32", "int8-dynamic"]},
    "corners": [{"quantization": {"scheme": "int8-dynamic"}}],
}


UNCUT = {"layers.keep": 1.0, "heads.keep": 1.0, "ffn.keep": 1.0}


def space(values: Mapping[str, Any] = SPACE) -> SearchSpace:
    return SearchSpace.from_mapping("test", values)


class StopAfter:
    """A listener that presses Ctrl-C after some trials."""

    def __init__(self, trials: int) -> None:
        self.left = trials

    def stage(self, name: str, done: int = 0, of: int = 0) -> None: ...

    def trial(self, trial: Trial, remaining_s: float | None) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def timeless(trials: tuple[Trial, ...] | list[Trial]) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in trials]


@pytest.fixture(scope="module")
def whole(tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """An uninterrupted search of 8 candidates."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, timer=SizeTimer())


def test_the_front_is_what_its_files_are(whole: SearchResult, data_file: Path) -> None:
    front = load_front(whole.run)
    assert front == whole.front
    assert front.verified
    latencies = [member.latency_ms.median for member in front.members]
    assert latencies == sorted(latencies)
    points = [(member.latency_ms.median, 1 - member.quality.validation) for member in front.members]
    assert non_dominated(points) == list(range(len(points)))
    assert {folder.name for folder in (whole.run / "models").iterdir()} == {"t000", *(m.id for m in front.members)}

    from transformers import AutoTokenizer

    held_out = load_examples(str(data_file), Columns()).test
    for member in front.members:
        folder = whole.run / member.path
        tokenizer = AutoTokenizer.from_pretrained(whole.run / "tokenizer")
        batches = [dict(tokenizer([text], return_tensors="np", truncation=True, max_length=64)) for text, _, _ in held_out]
        answers = predict(folder / "model.onnx", batches).argmax(1) == [label for _, _, label in held_out]
        assert member.quality.test == answers.mean()
        assert member.quality.n_test == len(held_out) == 80
        assert member.weight_bytes == (folder / "model.onnx").stat().st_size
        assert member.latency_ms.median == member.weight_bytes / 1e5
        recorded = json.loads((folder / "autocompress.json").read_text())
        assert recorded["candidate"] == member.candidate
        assert recorded["parity"]["fp32_max_abs_difference"] <= 1e-4
        assert recorded["scores"]["quality"]["test"] == member.quality.test
        assert sum(p.numel() for p in load_model(folder).parameters()) <= sum(
            p.numel() for p in load_model(whole.run / "models/t000").parameters()
        )


def test_the_baseline_is_the_teacher_in_fp32(whole: SearchResult) -> None:
    baseline = whole.front.baseline
    assert (baseline.id, baseline.speedup, baseline.quality.drop_test, baseline.path) == ("t000", 1.0, 0.0, "models/t000")
    assert baseline.candidate == UNCUT | {"quantization.scheme": "fp32"}


def test_drops_are_paired(whole: SearchResult) -> None:
    baseline = whole.trials[0]
    for trial in whole.trials[1:]:
        if trial.quality is None or baseline.correct is None or trial.correct is None:
            continue
        a, b = (np.unpackbits(np.frombuffer(bytes.fromhex(t), np.uint8), count=80) for t in (baseline.correct, trial.correct))
        differences = a.astype(float) - b
        assert trial.quality.drop_validation == pytest.approx(100 * differences.mean())
        assert trial.quality.drop_validation_stderr == pytest.approx(100 * differences.std(ddof=1) / 80**0.5)


def test_no_candidate_is_tried_twice(whole: SearchResult) -> None:
    tried = [json.dumps([trial.sizes, trial.candidate], sort_keys=True) for trial in whole.trials]
    assert len(set(tried)) == len(tried) == 9
    assert whole.trials[1].candidate == UNCUT | {"quantization.scheme": "int8-dynamic"}


def test_same_seed_same_search_and_another_seed_another(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    again = search(tiny_model, data_file, "cpu-1-thread", space(), tmp_path / "a", trials=8, timer=SizeTimer())
    assert timeless(again.trials) == timeless(whole.trials)
    other = search(tiny_model, data_file, "cpu-1-thread", space(), tmp_path / "b", trials=8, timer=SizeTimer(), seed=1)
    assert [t.candidate for t in other.trials] != [t.candidate for t in whole.trials]


def test_stopped_by_ctrl_c_and_resumed_it_ends_the_same(
    whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, timer=SizeTimer(), listener=StopAfter(4))
    so_far = load_front(out)
    assert not so_far.verified
    assert (out / "report.html").is_file()
    assert all((out / member.path / "model.onnx").is_file() for member in so_far.members)
    resumed = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, timer=SizeTimer(), resume=True)
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert resumed.front == whole.front


def test_a_finished_run_can_be_extended(whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=4, timer=SizeTimer())
    longer = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, timer=SizeTimer(), resume=True)
    assert timeless(longer.trials) == timeless(whole.trials)
    assert longer.front == whole.front
    assert json.loads((out / "run.json").read_text())["trials"] == 8


KILLED = """
import sys
from pathlib import Path
from autocompress.engine import search
from tests.conftest import SizeTimer
from tests.test_engine import space
model, data, out = sys.argv[1:]
search(model, data, "cpu-1-thread", space(), out, trials=8, timer=SizeTimer())
"""


@pytest.mark.parametrize("lines", [1, 4])
def test_killed_and_resumed_it_ends_the_same(
    lines: int, whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(tiny_model), str(data_file), str(out)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as process:
        while process.poll() is None:
            journal = out / "trials.jsonl"
            if journal.is_file() and journal.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    before = Run(out).trials()
    assert lines <= len(before) < 9
    with (out / "trials.jsonl").open("a") as file:
        file.write('{"number": 99, "cand')
    resumed = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=8, timer=SizeTimer(), resume=True)
    assert list(resumed.trials[: len(before)]) == before
    assert timeless(resumed.trials) == timeless(whole.trials)
    assert resumed.front == whole.front


def test_resuming_with_other_inputs_is_refused(whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    other_data = tmp_path / "other.csv"
    other_data.write_text(data_file.read_text() + "a film of note,1\n")
    for change, key in (
        ({"seed": 3}, "seed"),
        ({"space": space(SPACE | {"heads": {"keep": [0.5]}})}, "space"),
        ({"hardware": "cpu-all-cores"}, "hardware"),
        ({"budget": Budget(min_speedup=2)}, "budget"),
        ({"data": other_data}, "data"),
    ):
        arguments: dict[str, Any] = {
            "model": tiny_model,
            "data": data_file,
            "hardware": "cpu-1-thread",
            "space": space(),
            "trials": 8,
        }
        with pytest.raises(UserError, match=f"--resume: {key} differs"):
            search(**(arguments | change), out=whole.run, resume=True, timer=SizeTimer())


def test_a_failed_trial_is_recorded_and_the_search_goes_on(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = {"layers": {"keep": [[0, 9], [0, 3]]}, "quantization": {"scheme": ["fp32"]}}
    found = search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=10, timer=SizeTimer())
    assert {trial.state: trial.reason for trial in found.trials} == {
        "complete": None,
        "failed": "layers.keep names layer 9, the model has 4 (0 to 3)",
    }
    assert len(found.trials) == 3


def test_if_all_trials_fail_the_search_says_why(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = {"layers": {"keep": [[0, 9]]}}
    with pytest.raises(SearchFailed, match=r"all 1 trials failed: t001: layers.keep names layer 9"):
        search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=5, timer=SizeTimer())


def test_a_small_space_is_tried_whole_and_once(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    found = search(tiny_model, data_file, "cpu-1-thread", "quantization-only", tmp_path / "run", timer=SizeTimer())
    formats = [(t.candidate["quantization.scheme"], t.candidate.get("quantization.block_size")) for t in found.trials]
    weights = [(scheme, block) for scheme in ("int4-weights", "int8-weights") for block in (32, 128)]
    assert sorted(map(str, formats)) == sorted(map(str, [("fp32", None), ("int8-dynamic", None), ("int8-static", None), *weights]))
    assert all(trial.state == "complete" for trial in found.trials)


def test_a_latency_budget_is_a_constraint(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    found = search(
        tiny_model,
        data_file,
        "cpu-1-thread",
        space(),
        tmp_path / "run",
        trials=6,
        timer=SizeTimer(),
        budget=Budget(min_speedup=1.5),
    )
    assert found.front.members
    assert all(member.speedup >= 1.5 for member in found.front.members)
    for trial in found.trials[1:]:
        assert trial.speedup is not None
        assert (trial.state == "over-budget") == (trial.speedup < 1.5)
        if trial.state == "over-budget":
            assert trial.rungs == ()
            assert trial.path is None


def test_a_budget_that_nothing_meets_names_the_nearest(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RequestUnmet, match=r"none of 3 candidates meets the budget; the nearest is t00\d, limited by its speedup: .* not trained"
    ):
        search(
            tiny_model,
            data_file,
            "cpu-1-thread",
            space(),
            tmp_path / "run",
            trials=3,
            timer=SizeTimer(),
            budget=Budget(min_speedup=99),
        )
    assert load_front(tmp_path / "run").members == ()


def test_a_full_disk_is_said_and_the_run_resumable(
    tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk:
        free = 10

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: Disk)
        with pytest.raises(UserError, match="no room left on the disk"):
            search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=2, timer=SizeTimer())
    assert len(Run(out).trials()) == 1
    found = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=2, timer=SizeTimer(), resume=True)
    assert len(found.trials) == 3


def test_texts_in_two_splits_are_dropped_and_counted(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    lines = data_file.read_text(encoding="utf-8").splitlines()
    test = tmp_path / "test.csv"
    test.write_text("\n".join([lines[0], *lines[1:13], *lines[-12:]]) + "\n", encoding="utf-8")
    values = {"quantization": {"scheme": ["int8-dynamic"]}}
    search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=1, timer=SizeTimer(), test=str(test))
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    dropped = data["dropped"]
    assert data["test"] == 24
    assert dropped["train also in validation or test"] + dropped["validation also in test"] == 24
    assert data["train"] + data["validation"] + 24 == 400


def test_a_slower_and_clearly_worse_candidate_is_outclassed() -> None:
    trials = [Trial(1, {}, "complete", rungs=((32, 0.80), (100, 0.82)), speedup=4.0)]
    assert outclassed(trials, 32, 0.795, 3.0, 1600) is None  # within one standard error, 0.0101
    assert outclassed(trials, 32, 0.78, 5.0, 1600) is None  # worse but faster
    assert outclassed(trials, 32, 0.78, 3.0, 1600) == "0.7800 after 32 steps, where t001 had 0.8000 and is no slower"
    assert outclassed(trials, 192, 0.1, 3.0, 1600) is None  # nothing to compare with after 192 steps


def test_resuming_with_fewer_trials_loses_nothing(whole: SearchResult, tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.run, out)
    again = search(tiny_model, data_file, "cpu-1-thread", space(), out, trials=2, timer=SizeTimer(), resume=True)
    assert timeless(again.trials) == timeless(whole.trials)
    assert again.front == whole.front


def test_a_trial_that_cannot_end_in_time_leaves_no_trace(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = {"heads": {"keep": [0.5]}, "recovery": {"steps": 1_000_000}}
    # nothing is known of the first trial's pace until its first rung, where a million steps turn out to take hours
    found = search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", time_limit_s=600, timer=SizeTimer())
    assert [trial.id for trial in found.trials] == ["t000"]
    assert [folder.name for folder in (found.run / "models").iterdir()] == ["t000"]


def test_unlabelled_share_is_not_searched_without_text(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = SPACE | {"recovery": {"steps": [8], "unlabeled_share": [0.0, 0.5]}}
    found = search(tiny_model, data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=3, timer=SizeTimer())
    assert all(trial.state == "complete" for trial in found.trials)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]["space"]["parameters"]
    assert "recovery.unlabeled_share" not in recorded


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_that_knows_no_padding_is_searched(family: str, tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(family, vocab_size=30522, max_position_embeddings=64, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")  # type: ignore[no-untyped-call]
    for path in tiny_model.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    values = {"layers": {"keep": [0.5]}, "heads": {"keep": [0.5]}, "recovery": {"steps": [2]}}
    found = search(tmp_path / "model", data_file, "cpu-1-thread", space(values), tmp_path / "run", trials=1, timer=SizeTimer())
    assert [trial.state for trial in found.trials] == ["complete", "complete"]
    assert found.trials[1].sizes is not None and sum(found.trials[1].sizes["heads"]) == 4
    assert max(trial.parity["fp32_max_abs_difference"] for trial in found.trials if trial.parity) <= 1e-4
    loaded: Any = load_model(tmp_path / "run" / "models" / "t000")
    assert loaded.config.pad_token_id == 0

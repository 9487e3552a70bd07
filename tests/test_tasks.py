"""The table of tasks, and tasks of one's own; what each promises is in ``test_conformance``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.engine import session
from autocompress.engine.request import Request
from autocompress.errors import UserError
from autocompress.hardware.profile import HardwareProfile
from autocompress.interfaces import Option, Task, TaskInputs, TaskKind
from autocompress.pareto import METRICS
from autocompress.searching import search
from autocompress.tasks import OPTIONS, TASKS, text_classification
from autocompress.tasks.data import Columns
from tests.conftest import SizeDevice
from tests.searching import CPU, space


def test_every_task_is_known_everywhere() -> None:
    offered = {option.name: option.choices for option in OPTIONS.values()}["metric"]
    assert {*offered, *(kind.metric.name for kind in TASKS.values())} == set(METRICS)
    for kind in TASKS.values():
        assert all(OPTIONS[option.name] == option for option in kind.options)


def test_tasks_are_known_without_torch() -> None:
    code = (
        "import sys, autocompress.tasks\n"
        "assert not {'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def few(given: TaskInputs) -> Task:
    """Text classification that is tested on so many sentences."""
    task = text_classification.from_inputs(replace(given, options={}))
    return replace(task, test=task.test.take(range(given.options["tested"])))


OWN = replace(
    TASKS["text-classification"],
    name="few-tests",
    options=(Option("tested", "N", "sentences", int),),
    load=few,
)


def request(task: Any, **options: Any) -> Request:
    hardware = (HardwareProfile.load(CPU),)
    return Request("model", task, "data.csv", hardware, space(), Path("run"), options)


def test_a_task_of_ones_own_is_searched(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    values = {"layers": {"keep": 0.5}}
    arguments: dict[str, Any] = {"trials": 1, "connect": SizeDevice}
    outcome = search(
        tiny_model,
        data_file,
        CPU,
        space(values),
        tmp_path / "run",
        task=OWN,
        tested=17,
        **arguments,
    )
    assert outcome.front.baseline.quality.n_test == 17
    inputs = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["inputs"]
    assert (inputs["task"], inputs["tested"]) == ("few-tests", 17)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("summaries", {}, "unknown task 'summaries'; known are text-classification, language-mod"),
        (7, {}, "task 7 has no name, metric, head, options, load: give a TaskKind, or one of text"),
        (
            replace(OWN, head="masked-lm"),  # type: ignore[arg-type]
            {},
            "task few-tests: its head is 'masked-lm', known are sequence-classification, causal-lm",
        ),
        (
            replace(OWN, metric="f1"),  # type: ignore[arg-type]
            {},
            "task few-tests: its metric is 'f1', known are accuracy, macro-f1, f1, mcc, balanced",
        ),
        (OWN, {"stride": 3}, "--stride is for the task language-modeling, not for few-tests"),
        (OWN, {"tests": 3}, "--tests is unknown; the options of few-tests are tested"),
        (OWN, {"tested": "3"}, "--tested is '3': it must be a whole number"),
        ("text-classification", {"unlabeled": 3}, "--unlabeled is 3: it must be text"),
        (
            "text-classification",
            {"metric": "perplexity"},
            "--metric is 'perplexity': it must be one of accuracy, macro-f1, f1, mcc, balanced-acc",
        ),
        (
            "language-modeling",
            {"metric": "f1"},
            "--metric is for the task text-classification, not for language-modeling",
        ),
    ],
)
def test_a_mistake_in_the_task_is_one_line(
    task: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        request(task, **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_options_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their own names, columns together; what is None was not given."""
    monkeypatch.setattr(session, "search_for", lambda request, *_: request)
    search_request: Any = search(
        "model",
        "data.csv",
        CPU,
        space(),
        "run",
        columns=Columns(text="body", label="stars"),
        unlabeled=Path("more.txt"),
        stride=None,
        seed=3,
        task="text-classification",  # else the model is asked, and there is none
    )
    assert search_request.options == {
        "text-column": "body",
        "label-column": "stars",
        "unlabeled": "more.txt",
    }
    assert search_request.seed == 3
    with pytest.raises(UserError, match="--speed is unknown; the options of text-classification"):
        search("model", "data.csv", CPU, space(), "run", task="text-classification", speed=3)


def test_a_resumed_run_must_have_the_same_options(tmp_path: Path) -> None:
    """Of a file the content; a task is known by its name."""
    file = tmp_path / "more.txt"
    digests = []
    for text in ("a", "b"):
        file.write_text(text, encoding="utf-8")
        asked = request("text-classification", unlabeled=str(file), **{"text-column": "text"})
        inputs = asked.inputs("digest", {CPU: {}})
        assert (inputs["task"], inputs["text-column"]) == ("text-classification", "text")
        assert "label-column" not in inputs
        digests.append(inputs["unlabeled"])
    assert digests[0] != digests[1] and str(file) not in digests


def test_task_kinds_are_taken_by_their_attributes() -> None:
    class Alike:
        name, metric, head, options, load = "alike", OWN.metric, OWN.head, (), staticmethod(few)

    asked = request(Alike())
    assert asked.metric == METRICS["accuracy"] and asked.kind.name == "alike"
    assert not isinstance(asked.kind, TaskKind)

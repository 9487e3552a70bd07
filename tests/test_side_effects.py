"""What a call of the library leaves behind in its process: nothing."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.errors import UserError
from autocompress.graphs.export import to_onnx
from autocompress.interfaces import Batch
from autocompress.search_space import SearchSpace
from autocompress.tasks.data import Columns
from autocompress.tasks.text_classification import Split, TextClassification, load
from autocompress.techniques import SETTINGS
from autocompress.training.teacher import (
    finetune,
    load_classifier,
    load_config,
    load_language_model,
    load_tokenizer,
)
from tests import tiny_models

Check = Callable[[Callable[[], object]], None]
LOGGERS = ("", "transformers", "huggingface_hub", "optuna", "datasets", "onnxruntime", "torch")


@pytest.fixture(scope="module")
def task(tiny_model: Path, data_file: Path) -> TextClassification:
    """With 32 sentences to train on: two steps."""
    whole = load(load_tokenizer(str(tiny_model), 30522), str(data_file), Columns(), 64, None)
    return replace(whole, train=Split(whole.train.rows[:32], whole.train.labels[:32]))


@pytest.fixture(params=[True, False], ids=["chatty", "silent"])
def disturb(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sets what nothing in the library would choose: levels, progress drawn or not, a state of the
    random numbers that no seed gives."""
    before = state()

    def disturbed() -> None:
        for i, name in enumerate(LOGGERS):
            logging.getLogger(name).setLevel(11 + i if request.param else 41 + i)
        _draw(request.param, not request.param)
        torch.rand(7), np.random.rand(7), random.random()

    yield disturbed
    for name, level in before["levels"].items():
        logging.getLogger(name).setLevel(level)
    _draw(*before["progress"])


def _draw(transformers: bool, hub: bool) -> None:
    if transformers:
        transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    else:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    (enable_progress_bars if hub else disable_progress_bars)()


def state() -> dict[str, Any]:
    """Everything of the process that a library might leave changed."""
    kind, keys, *position = np.random.get_state()
    return {
        "levels": {name: logging.getLogger(name).level for name in LOGGERS},
        "disabled": logging.root.manager.disable,
        "progress": (
            transformers_logging.is_progress_bar_enabled(),
            not are_progress_bars_disabled(),
        ),
        "torch": (torch.get_rng_state().tolist(), torch.get_num_threads()),
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype()),
        "numpy": (kind, np.asarray(keys).tolist(), position),
        "random": random.getstate(),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "operations": Conv1D.forward,
    }


@pytest.fixture
def unchanged(disturb: Callable[[], None]) -> Check:
    """Asserts that a call leaves the process as it was."""

    def by(call: Callable[[], object]) -> None:
        call()  # libraries that are imported late may add filters of their own
        disturb()
        before = state()
        call()
        after = state()
        assert [key for key in before if before[key] != after[key]] == []

    return by


def test_a_sampler_leaves_nothing_behind(unchanged: Check) -> None:
    space = SearchSpace.from_mapping("mine", {"heads": {"keep": {"low": 0.1, "high": 0.9}}})

    def sample() -> None:
        sampler = OptunaSampler(space, "tpe", 0)
        for _ in range(12):
            handle, point = sampler.ask()
            sampler.tell(handle, [SETTINGS.candidate(point).number("heads.keep"), 0.5])

    unchanged(sample)


def test_loading_leaves_nothing_behind(unchanged: Check, tiny_model: Path) -> None:
    source = str(tiny_model)
    unchanged(lambda: load_config(source))
    unchanged(lambda: load_tokenizer(source, 30522))
    unchanged(lambda: load_classifier(source, ("a", "b", "c")))


def test_a_failure_leaves_nothing_behind(unchanged: Check, tmp_path: Path) -> None:
    def fail() -> None:
        for call in (load_config, load_language_model):
            with pytest.raises(UserError):
                call(str(tmp_path / "none"))

    unchanged(fail)


def test_training_leaves_nothing_behind_but_weights(
    unchanged: Check, tiny_model: Path, task: TextClassification
) -> None:
    model: Any = load_classifier(str(tiny_model), None)
    before = model.config.to_dict()
    unchanged(lambda: finetune(model, task, 0))
    assert model.config.to_dict() == before


def test_exporting_leaves_nothing_behind(unchanged: Check, tmp_path: Path) -> None:
    model: Any = tiny_models.build("gpt2")
    before = model.config.to_dict(), model.config._attn_implementation
    inputs = {name: np.ones((2, 8), np.int64) for name in tiny_models.inputs()}
    unchanged(lambda: to_onnx(model, tmp_path / "model.onnx", Batch(inputs)))
    assert (model.config.to_dict(), model.config._attn_implementation) == before


def test_importing_leaves_the_logging_of_the_process_alone() -> None:
    """A module of onnxruntime would set up its root."""
    code = (
        "import logging\nfrom autocompress.graphs import runtime\n"
        "runtime._quantizers_in_blocks()\n"
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == f"[] {logging.WARNING}\n"

"""Every objective in a language model, whose teacher is run each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autocompress.cli import main
from autocompress.distillation.settings import OBJECTIVES
from autocompress.engine import session
from autocompress.engine.making import recovery_of
from autocompress.families import FAMILIES
from autocompress.tasks.language_modeling import LanguageModeling
from autocompress.techniques import SETTINGS
from autocompress.training.outputs import Teacher, TransferSet
from autocompress.training.taps import watch
from autocompress.training.teacher import load_language_model
from tests.conftest import SizeDevice
from tests.test_language_search import CUT, task  # noqa: F401


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_students_learn_from_it(
    objective: str,
    tiny_gpt2: Path,
    task: LanguageModeling,  # noqa: F811
    tmp_path: Path,
) -> None:
    model, family = load_language_model(str(tiny_gpt2)), FAMILIES["gpt2"]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    teacher = Teacher(
        model,
        family,
        TransferSet(
            task.train.rows,
            task.train.labels,
            task.batch,
            task.loss,
            task.batch_size,
            by_token=True,
        ),
        tmp_path / "s",
    )
    settings = {
        "steps": 40,
        "objectives": [objective],
        "hard_label_weight": 0.0,
        "learning_rate": 3e-3,
    }
    chosen = SETTINGS.candidate({f"recovery.{name}": value for name, value in settings.items()})
    one = recovery_of(family.cut(model, CUT), CUT, chosen, teacher, (0, 1))

    def loss() -> float:
        with torch.no_grad(), watch(one.student, family, len(CUT.layers), one.watched) as seen:
            return one._loss(list(range(32)), seen).item()

    before = loss()
    one.advance(40)
    after = loss()
    assert 0 < after < 0.9 * before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("recipe", ["distilgpt2", "mate-kd", "uniform-truncation"])
def test_a_recipe_is_evaluated_by_perplexity(
    recipe: str,
    tiny_gpt2: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = session.search_for
    monkeypatch.setattr(
        session, "search_for", lambda request, listener: original(request, listener, SizeDevice)
    )
    inputs = {
        "--model": tiny_gpt2,
        "--data": text_file,
        "--out": tmp_path / "run",
        "--task": "language-modeling",
    }
    lengths = [
        "--block-length",
        "32",
        "--context",
        "48",
        "--stride",
        "24",
        "--hardware",
        "cpu-1-thread",
    ]
    words = [str(word) for pair in inputs.items() for word in pair]
    assert (
        main(["evaluate", "--recipe", recipe, "--set", "recovery.steps=4", *words, *lengths]) == 0
    )
    out = capsys.readouterr().out
    assert "perplexity" in out and "t001 on cpu-1-thread" in out

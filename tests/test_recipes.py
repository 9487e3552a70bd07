"""Every shipped recipe is a point of the space and says where it is from; changes and mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from autocompress import resources
from autocompress.cli import main
from autocompress.engine.samplers.optuna_sampler import OptunaSampler
from autocompress.errors import UserError
from autocompress.interfaces import Knowledge
from autocompress.journal import Run
from autocompress.pareto import load_front
from autocompress.plan import Plan
from autocompress.recipes import Recipe
from autocompress.search_space import SearchSpace
from autocompress.structure import Structure
from autocompress.student import first
from autocompress.techniques import SETTINGS, resolve
from autocompress.testing.models import BERT, Workshop
from tests.conftest import SizeDevice

NAMES = resources.names("search_spaces/recipes")
each_recipe = pytest.mark.parametrize("name", NAMES)


@each_recipe
def test_a_recipe_is_one_point_of_the_space(name: str) -> None:
    recipe = Recipe.load(name)
    assert (
        recipe.name == name
        and recipe.description
        and re.search(r" \d{4}, ", recipe.paper)
        and recipe.section
    )
    space = recipe.space
    sampler = OptunaSampler(space, "tpe", 0)
    candidates = [space.candidate(sampler.ask()[1]) for _ in range(3)]
    assert candidates[0] == candidates[1] == candidates[2] == SETTINGS.candidate(recipe.settings)
    assert recipe.settings.items() <= candidates[0].active.items()


@each_recipe
def test_the_page_of_recipes_says_what_stands_in_for_what(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs/recipes.md").read_text(encoding="utf-8")
    told = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    recipe = Recipe.load(name)
    assert recipe.paper in told
    assert (f"What stands in for what: {recipe.differs}." in told) == bool(recipe.differs)


def test_heads_are_pruned_as_in_the_paper() -> None:
    candidate = SETTINGS.candidate(Recipe.load("head-pruning").settings)
    assert candidate.text("heads.importance") == "gradient"


def test_no_two_recipes_are_the_same_point() -> None:
    assert (
        len({SETTINGS.candidate(Recipe.load(name).settings) for name in NAMES}) == len(NAMES) >= 16
    )


def test_the_decoder_space_tries_distilgpt2_in_int8() -> None:
    recipe, space = Recipe.load("distilgpt2"), SearchSpace.load("decoder")
    smaller: dict[str, Any] = {
        "weights.repair": True,
        "recovery.steps": 2048,
        "quantization.scheme": "int8-weights",
        "quantization.block_size": 128,
    }
    assert SETTINGS.candidate({**recipe.settings, **smaller}) in [
        space.candidate(corner) for corner in space.corners
    ]


def test_the_corners_of_the_space_for_bytes_are_ever_smaller_students(tmp_path: Path) -> None:
    """int8 alone, the embedding in 3 bits, a quarter of the words, and the smallest."""
    space, shop = SearchSpace.load("encoder-small"), Workshop(BERT, tmp_path)
    candidates = [space.candidate(corner) for corner in space.corners]
    plans = [resolve(shop.plans["uncut"], one, shop.knowledge) for one in candidates]
    students = [first(shop.model, shop.family, plan, "copied") for plan in plans]
    sizes = [sum(p.numel() for p in student.parameters()) for student in students]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[-1]
    assert [[part.technique for part in plan.parts] for plan in plans] == [
        [],
        ["embedding-codes"],
        ["vocabulary"],
        ["vocabulary", "embedding-codes", "codes"],
    ]
    assert space.objectives == ("latency", "quality", "size")


def kept(name: str) -> list[int]:
    candidate = SETTINGS.candidate(Recipe.load(name).settings)
    full = Plan("gpt2", Structure.full([2] * 12, [4] * 12))
    return [layer.source for layer in resolve(full, candidate, Knowledge({})).structure.layers]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("uniform-truncation", [0, 2, 4, 6, 8, 10]),
        ("pseudo-uniform-truncation", [0, 2, 4, 7, 9, 11]),
        ("bottom-half-truncation", [0, 1, 2, 3, 4, 5]),
        ("top-half-truncation", [6, 7, 8, 9, 10, 11]),
        ("sandwich-truncation", [0, 1, 2, 9, 10, 11]),
        ("three-layer-truncation", [0, 6, 11]),
        ("distilgpt2", [0, 2, 4, 7, 9, 11]),
    ],
)
def test_layers_of_gpt2_are_those_of_the_paper(name: str, layers: list[int]) -> None:
    assert kept(name) == layers


def weights(name: str) -> dict[str, float]:
    """Of the labels and the objectives, relative to that of the labels."""
    candidate = SETTINGS.candidate(Recipe.load(name).settings)
    labels = candidate.number("recovery.hard_label_weight")
    objectives: Any = candidate.get("recovery.objectives")
    objective_weights = {
        one: candidate.number(f"recovery.{one.replace('-', '_')}_weight", 1.0) * (1 - labels)
        for one in objectives
    }
    return {one: weight / labels for one, weight in objective_weights.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("distilgpt2", {"logits": 5 / 2, "cosine": 1 / 2}),
        ("distilbert", {"logits": 5 / 2, "cosine": 1 / 2}),
        ("rail-kd", {"logits": 1, "random-layers": 1}),
        ("mate-kd", {"logits": 1, "adversarial-logits": 1}),
        (
            "pkd-minilm",
            {
                "logits": 1.65,
                "normalized-hidden-states": 0.008,
                "attention-maps": 1,
                "value-relations": 1,
            },
        ),
    ],
)
def test_weights_are_those_of_the_paper(name: str, expected: dict[str, float]) -> None:
    assert weights(name) == pytest.approx(expected)


def test_changes_take_the_place_of_what_the_recipe_says() -> None:
    changes = [
        "recovery.steps=7",
        "layers.keep = [0, 2]",
        "recovery.objectives=['logits']",
        "recovery.random_layers=concatenated",
    ]
    with pytest.raises(
        UserError, match=r"^--set: recovery\.random_layers means nothing beside the other settings$"
    ):
        Recipe.load("rail-kd", changes)
    recipe = Recipe.load("rail-kd", [*changes[:2], changes[3]])
    assert (recipe.settings["recovery.steps"], recipe.settings["layers.keep"]) == (7, (0, 2))
    assert recipe.settings["recovery.random_layers"] == "concatenated"
    assert "layers.rule" not in recipe.settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recovery.steps", "--set recovery.steps: give key=value, such as recovery.steps=500"),
        (
            "recovery.step=5",
            "--set: unknown setting 'recovery.step' (did you mean 'recovery.steps'?)",
        ),
        (
            "recovery.steps=many",
            "--set: recovery.steps is 'many', allowed is a whole number from 0 to 1000000",
        ),
        (
            "quantization.block_size=32",
            "--set: quantization.block_size means nothing beside the other settings",
        ),
    ],
)
def test_mistakes_in_changes(change: str, message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        Recipe.load("distilgpt2", [change])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[layers]\nkeep = 0.5", "description is None, it must be text"),
        (
            'description = "x"\npaper = 3\nsection = "1"\n[layers]\nkeep = 0.5',
            "paper is 3, it must be text",
        ),
        (
            'description = "x"\npaper = "y"\nsection = "1"\n[layers]\nkeep = [0.5, 0.25]',
            "layers.keep is [0.5, 0.25], allowed is",
        ),
        (
            'description = "x"\npaper = "y"\nsection = "1"\ndiffers = true',
            "differs is True, it must be text",
        ),
        (
            'description = "x"\npaper = "y"\nsection = "1"\n[recovery]\ntemperature = 2.0',
            "recovery.temperature means nothing beside the other settings",
        ),
    ],
)
def test_mistakes_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match="^" + re.escape(f"{path}: {message}")):
        Recipe.load(str(path))


def command(tiny_model: Path, data_file: Path, out: Path, recipe: str, *more: str) -> list[str]:
    inputs = [
        "--model",
        str(tiny_model),
        "--task",
        "text-classification",
        "--data",
        str(data_file),
        "--hardware",
        "cpu-1-thread",
    ]
    return ["evaluate", "--recipe", recipe, *inputs, "--out", str(out), *more]


@pytest.fixture
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from autocompress.engine import session

    original = session.search_for
    monkeypatch.setattr(
        session, "search_for", lambda request, listener: original(request, listener, SizeDevice)
    )


@pytest.mark.usefixtures("_sizes")
def test_evaluate_tries_the_recipe_alone_and_prints_its_scores(
    tiny_model: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(tiny_model, data_file, out, "distilgpt2", "--set", "recovery.steps=3")) == 0
    printed = capsys.readouterr().out
    baseline, trial = Run(out).trials()
    assert trial.state == "complete" and trial.sizes is not None and trial.sizes["layers"] == [0, 3]
    assert (
        trial.candidate["recovery.steps"] == 3 and trial.candidate["recovery.cosine_weight"] == 0.5
    )
    assert "distilgpt2: Sanh et al. 2019" in printed
    for one in (baseline, trial):
        [line] = [
            line for line in printed.splitlines() if line.startswith(f"{one.id} on cpu-1-thread: ")
        ]
        score = one.scores["cpu-1-thread"]
        assert score.quality is not None and one.sizes is not None
        for shown in (
            f" {score.timing.latency_ms.value:.3g} ms ({score.timing.speedup:.2f}x), ",
            f" {(one.weight_bytes or 0) / 1e6:.1f} MB, ",
            f" accuracy {score.quality.validation:.4f} on validation (drop "
            f"{score.quality.drop_validation:.2f} points ± ",
            f"; {one.seconds:.0f} s; {len(one.sizes['layers'])} layers, ",
        ):
            assert shown in line
    for member in load_front(out).members:
        assert f", {member.quality.test:.4f} on test; " in printed


@pytest.mark.usefixtures("_sizes")
def test_evaluate_without_a_teacher_and_from_embeddings(
    tiny_model: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            command(
                tiny_model,
                data_file,
                tmp_path / "run",
                "embeddings-only",
                "--set",
                "recovery.steps=2",
            )
        )
        == 0
    )
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("t001 on cpu-1-thread: ")
    assert line.endswith(
        "2 layers, heads 4, FFN 64, fp32, start embeddings, 2 steps without a teacher"
    )


@pytest.mark.usefixtures("_sizes")
def test_a_recipe_that_changes_nothing_is_said(
    tiny_model: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            command(
                tiny_model,
                data_file,
                tmp_path / "run",
                "uniform-truncation",
                "--set",
                "layers.keep=1.0",
                "--set",
                "recovery.steps=0",
            )
        )
        == 1
    )
    assert "recipe uniform-truncation leaves this model as it is" in capsys.readouterr().err


def test_an_unknown_recipe_is_told_the_known_ones(
    tiny_model: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model, data_file, tmp_path / "run", "distilgtp2")) == 2
    assert capsys.readouterr().err == (
        "autocompress: unknown recipe 'distilgtp2' (did you mean 'distilgpt2'?): give a path to a "
        f".toml file or one of {', '.join(NAMES)}\n"
    )
    assert not (tmp_path / "run").exists()


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    assert main(["recipe", "show", "mate-kd"]) == 0
    printed = capsys.readouterr().out
    assert '"recovery.masked_share": 0.3' in printed
    assert f'"differs": "{Recipe.load("mate-kd").differs}"' in printed

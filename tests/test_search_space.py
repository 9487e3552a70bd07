from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from autocompress import resources
from autocompress.errors import UserError
from autocompress.search_space import Choices, Range, SearchSpace

SPACE = """
description = "for the tests"

[quantization]
scheme = ["fp32", "int8-dynamic"]

[layers]
keep = [1.0, 0.5, [0, 2, 4]]

[heads]
keep = { low = 0.25, high = 0.75, step = 0.25 }
allocation = "uniform"

[recovery]
steps = { low = 10, high = 1000, log = true }
objectives = [["logits"], ["logits", "hidden-states"]]

[[corners]]
heads.keep = 0.5
recovery.steps = 100

[[corners]]
layers.keep = [0, 2, 4]
heads = { keep = 0.25, allocation = "uniform" }
recovery.steps = 10
"""


def load(folder: Path, text: str) -> SearchSpace:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return SearchSpace.load(str(path))


def test_a_file_as_parameters_in_order_of_application(tmp_path: Path) -> None:
    space = load(tmp_path, SPACE)
    assert (space.name, space.description) == ("mine", "for the tests")
    assert [(parameter.name, parameter.values) for parameter in space.parameters] == [
        ("layers.keep", Choices((1.0, 0.5, (0, 2, 4)))),
        ("heads.keep", Range(0.25, 0.75, 0.25, log=False, integer=False)),
        ("heads.allocation", Choices(("uniform",))),
        ("recovery.steps", Range(10, 1000, None, log=True, integer=True)),
        ("recovery.objectives", Choices((("logits",), ("logits", "hidden-states")))),
        ("quantization.scheme", Choices(("fp32", "int8-dynamic"))),
    ]


def test_objectives_of_a_space(tmp_path: Path) -> None:
    """They stand at the top; those of the distillation have a section."""
    silent = load(tmp_path, SPACE)
    spoken = load(tmp_path, 'objectives = ["size", "quality"]\n' + SPACE)
    assert silent.objectives is None and "objectives" not in silent.as_dict()
    assert spoken.objectives == ("quality", "size")
    assert spoken.as_dict() == silent.as_dict() | {"objectives": ["quality", "size"]}
    assert (spoken.parameters, spoken.corners) == (silent.parameters, silent.corners)
    assert spoken.without("heads.keep").objectives == ("quality", "size")


def test_a_corner_leaves_the_rest_at_the_only_value_or_the_default(tmp_path: Path) -> None:
    space = load(tmp_path, SPACE)
    first, second = map(space.candidate, space.corners)
    assert first.as_dict() == {
        "heads.keep": 0.5,
        "heads.allocation": "uniform",
        "recovery.steps": 100,
    }
    assert second.as_dict() == {
        "layers.keep": [0, 2, 4],
        "heads.keep": 0.25,
        "heads.allocation": "uniform",
        "recovery.steps": 10,
    }
    assert first.get("layers.keep") == 1.0
    assert second.get("recovery.objectives") == ("logits",)
    assert second.get("quantization.scheme") == "fp32"


def test_as_json(tmp_path: Path) -> None:
    described = json.loads(json.dumps(load(tmp_path, SPACE).as_dict()))
    assert described["name"] == "mine"
    assert described["parameters"] == {
        "layers.keep": "1.0 | 0.5 | [0, 2, 4]",
        "heads.keep": "0.25 to 0.75 step 0.25",
        "heads.allocation": '"uniform"',
        "recovery.steps": "10 to 1000 log",
        "recovery.objectives": '["logits"] | ["logits", "hidden-states"]',
        "quantization.scheme": '"fp32" | "int8-dynamic"',
    }
    assert [corner["layers.keep"] for corner in described["corners"]] == [1.0, [0, 2, 4]]


def test_without_a_parameter_it_stays_at_its_default(tmp_path: Path) -> None:
    space = load(tmp_path, SPACE).without("layers.keep")
    assert [parameter.name for parameter in space.parameters][:2] == [
        "heads.keep",
        "heads.allocation",
    ]
    assert [corner["layers.keep"] for corner in space.corners] == [1.0, 1.0]
    assert [corner["heads.keep"] for corner in space.corners] == [0.5, 0.25]


def test_limited_to_what_devices_offer_it_loses_the_rest_and_the_corners_that_have_it(
    tmp_path: Path,
) -> None:
    space = load(
        tmp_path,
        """
        [heads]
        keep = [1.0, 0.5]
        [quantization]
        scheme = ["int4-weights", "fp32", "int8-dynamic", "fp16"]
        [[corners]]
        heads.keep = 0.5
        [[corners]]
        quantization.scheme = "int8-dynamic"
        [[corners]]
        quantization.scheme = "fp16"
        """,
    )
    limited, dropped = space.limited("quantization.scheme", {"fp32", "int8-dynamic", "bf16"})
    assert dropped == ["int4-weights", "fp16"]
    assert [parameter.values for parameter in limited.parameters] == [
        Choices((1.0, 0.5)),
        Choices(("fp32", "int8-dynamic")),
    ]
    assert [
        (corner["heads.keep"], corner["quantization.scheme"]) for corner in limited.corners
    ] == [
        (0.5, "fp32"),
        (1.0, "int8-dynamic"),
    ]
    assert (limited.name, limited.description) == (space.name, space.description)


def test_limited_to_what_it_has_it_stays_as_it_is(tmp_path: Path) -> None:
    space = load(tmp_path, SPACE)
    assert space.limited("quantization.scheme", ("fp32", "int8-dynamic", "fp16")) == (space, [])
    assert space.limited("quantization.block_size", (7,)) == (space, [])


def test_limited_to_nothing_it_is_refused(tmp_path: Path) -> None:
    space = load(tmp_path, "[quantization]\nscheme = ['int8-static', 'int8-dynamic']")
    message = (
        "search space mine: quantization.scheme is int8-static, int8-dynamic, the devices "
        "offer fp32, fp16"
    )
    with pytest.raises(UserError, match="^" + re.escape(message) + "$"):
        space.limited("quantization.scheme", ("fp32", "fp16"))


@pytest.mark.parametrize("name", sorted({"demo", *resources.names("search_spaces")}))
def test_shipped_spaces(name: str) -> None:
    space = SearchSpace.load(name)
    assert space.name == name
    assert len({space.candidate(corner) for corner in space.corners}) == len(space.corners), (
        "a corner repeats another one"
    )
    for parameter in space.parameters:
        values = parameter.values
        for value in values.values if isinstance(values, Choices) else (values.low, values.high):
            assert parameter.setting.domain.allows(value) and parameter.contains(value)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("keep = 0.5", ["unknown key 'keep'", "[layers]"]),
        ("[depth]\nkeep = 0.5", ["unknown setting 'depth.keep'", "layers.keep"]),
        ("[layers]\nkeep = 0.5\n[depth]", ["depth"]),
        ("[layers]\nkep = 0.5", ["unknown setting 'layers.kep'"]),
        ("", ["names no setting"]),
        ("description = 3\n[layers]\nkeep = 0.5", ["description is 3", "text"]),
        ("[heads]\nkeep = ['half']", ["heads.keep is 'half'", "a number from 0 to 1"]),
        ("[heads]\nkeep = [true]", ["heads.keep is True", "a number from 0 to 1"]),
        ("[heads]\nkeep = [0.5, 1.5]", ["heads.keep is 1.5", "a number from 0 to 1"]),
        ("[heads]\nkeep = nan", ["heads.keep is nan"]),
        ("[heads]\nkeep = 2020-01-01", ["heads.keep is datetime.date"]),
        (
            "[recovery]\nsteps = [0.5]",
            ["recovery.steps is 0.5", "a whole number from 0 to 1000000"],
        ),
        (
            "[recovery]\nobjectives = ['logits']",
            ["recovery.objectives is 'logits'", "a list of one or more of"],
        ),
        ("[heads]\nkeep = []", ["heads.keep is an empty list"]),
        ("[heads]\nkeep = [0.5, 0.25, 0.5]", ["heads.keep lists a value twice"]),
        ("[heads]\nkeep = [1, 1.0]", ["heads.keep lists a value twice"]),
        ("[layers]\nkeep = [[0, 1], [0, 1]]", ["layers.keep lists a value twice"]),
        (
            "[heads]\nkeep = { low = 0.75, high = 0.25 }",
            ["heads.keep", "reversed", "low 0.75, high 0.25"],
        ),
        ("[heads]\nkeep = { low = 0.5, high = 0.5 }", ["heads.keep", "reversed or empty"]),
        ("[heads]\nkeep = { low = 0.5 }", ["heads.keep is a range without 'high'"]),
        (
            "[heads]\nkeep = { low = 0.5, high = 0.75, stride = 0.1 }",
            ["heads.keep has the unknown key 'stride'"],
        ),
        ("[heads]\nkeep = { low = 0.5, high = 1.5 }", ["high of the range: heads.keep is 1.5"]),
        (
            "[layers]\nkeep = { low = 0.5, high = [0, 1] }",
            ["layers.keep is [0, 1] at high", "numbers"],
        ),
        (
            "[layers]\nrule = { low = 'bottom', high = 'top' }",
            ["layers.rule is a range", "one of uniform"],
        ),
        ("[quantization]\nblock_size = { low = 32, high = 128 }", ["quantization.block_size"]),
        (
            "[recovery]\nsteps = { low = 1, high = 9, log = true, step = 2 }",
            ["recovery.steps", "log", "no step"],
        ),
        (
            "[recovery]\nsteps = { low = 0, high = 9, log = true }",
            ["recovery.steps", "low above 0"],
        ),
        (
            "[recovery]\nsteps = { low = 1, high = 9, log = 1 }",
            ["recovery.steps", "log is true or false"],
        ),
        ("[recovery]\nsteps = { low = 0, high = 9, step = 0 }", ["recovery.steps has step 0"]),
        (
            "[recovery]\nsteps = { low = 0, high = 9, step = 10 }",
            ["recovery.steps has step 10", "divides 9"],
        ),
        ("[recovery]\nsteps = { low = 0, high = 9, step = 2.5 }", ["recovery.steps has step 2.5"]),
        ("[recovery]\nsteps = { low = 0, high = 9, step = 0.5 }", ["recovery.steps has step 0.5"]),
        ("corners = 3\n[heads]\nkeep = 0.5", ["corners must be tables"]),
        (
            "[layers]\nkeep = [1.0, 0.5]\n[[corners]]\nlayers.keep = 0.25",
            ["corner 1: layers.keep is 0.25", "1.0 | 0.5"],
        ),
        (
            "[layers]\nkeep = [1.0]\n[[corners]]\nlayers.keep = 2",
            ["corner 1: layers.keep is 2", "allowed is"],
        ),
        (
            "[layers]\nkeep = [1.0]\n[[corners]]\nlayers.kept = 1.0",
            ["corner 1: unknown setting 'layers.kept'"],
        ),
        (
            "[layers]\nkeep = [1.0]\n[[corners]]\nheads.keep = 0.5",
            ["corner 1: heads.keep is not a parameter of the space"],
        ),
        (
            "[layers]\nkeep = [1.0]\n[[corners]]\n[[corners]]\nkeep = 1.0",
            ["corner 2: unknown key 'keep'"],
        ),
        (
            "[heads]\nkeep = { low = 0.25, high = 0.75 }\n[[corners]]\nheads.keep = 0.8",
            ["corner 1: heads.keep is 0.8", "0.25 to 0.75"],
        ),
        (
            "[heads]\nkeep = { low = 0.25, high = 0.75, step = 0.25 }\n[[corners]]\nheads.keep = "
            "0.3",
            ["corner 1: heads.keep is 0.3", "step 0.25"],
        ),
        (
            "[heads]\nkeep = { low = 0.25, high = 0.75 }\n[layers]\nkeep = "
            "[1.0]\n[[corners]]\nlayers.keep = 1.0",
            ["corner 1: ", "heads.keep", "outside the space: 0.25 to 0.75"],
        ),
    ],
)
def test_mistakes_name_the_file_the_key_and_what_is_allowed(
    tmp_path: Path, text: str, fragments: list[str]
) -> None:
    with pytest.raises(UserError, match="^" + re.escape(str(tmp_path / "mine.toml"))) as raised:
        load(tmp_path, text)
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []


@pytest.mark.parametrize(("choices", "corner"), [("[1.0, 0.5]", "1"), ("[1, 0.5]", "1.0")])
def test_in_a_corner_a_whole_number_is_the_number_it_equals(
    tmp_path: Path, choices: str, corner: str
) -> None:
    (point,) = load(
        tmp_path, f"[heads]\nkeep = {choices}\n[[corners]]\nheads.keep = {corner}"
    ).corners
    assert point["heads.keep"] == 1

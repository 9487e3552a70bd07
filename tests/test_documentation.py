"""README and the pages of ``docs`` say what the code does: commands, names, files, messages, and
the code in them."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import generated
import numpy as np
import pytest

import autocompress
from autocompress import units
from autocompress.arguments import parser
from autocompress.engine.samplers import SAMPLERS
from autocompress.hardware.profile import RUNTIMES, HardwareProfile
from autocompress.interfaces import Knowledge
from autocompress.pareto import checked_objectives
from autocompress.plan import Plan
from autocompress.recipes import Recipe
from autocompress.search_space import SearchSpace
from autocompress.structure import Importance, Structure
from autocompress.tasks import OPTIONS, TASKS
from autocompress.techniques import SETTINGS, TECHNIQUES, resolve, vocabulary
from autocompress.verbs import _READ

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *generated.pages()]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
each_page = pytest.mark.parametrize("page", TEXTS)


def fenced(language: str) -> Iterator[tuple[str, str]]:
    """The page and the text of each block of a language."""
    for page, text in TEXTS.items():
        for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if block[1] == language:
                yield page, block[2]


def lines() -> Iterator[str]:
    for _, block in fenced(""):
        yield from block.replace("\\\n", " ").splitlines()


COMMANDS = sorted({line for line in lines() if line.startswith("autocompress ")})


def among(known: Any) -> Callable[[str], None]:
    def check(value: str) -> None:
        assert value in known

    return check


def unless_a_file(load: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda name: None if name.endswith(".toml") else load(name)


def of_a_device(read: Callable[[str], float]) -> Callable[[str], float]:
    return lambda text: read(text.rpartition("=")[2])


READERS: dict[str, Callable[[str], Any]] = {
    "space": unless_a_file(SearchSpace.load),
    "hardware": unless_a_file(HardwareProfile.load),
    "task": among(TASKS),
    "metric": among(OPTIONS["metric"].choices),
    "sampler": among(SAMPLERS),
    "runtime": among(RUNTIMES),
    "objectives": lambda text: checked_objectives(text.split(","), "--objectives"),
    "max_latency": of_a_device(units.latency_ms),
    "min_speedup": of_a_device(units.speedup),
    "max_size": units.size_bytes,
    "min_compression": units.compression,
    "time_limit": units.duration_s,
}
OF_A_RUN = {"hardware"}
"""Options of ``front``, ``pick`` and ``export`` that name something of the run."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_taken(command: str) -> None:
    """It parses, and spaces, profiles, recipes, settings and quantities in it are right."""
    options = parser().parse_args(shlex.split(command, comments=True)[1:])
    for name, value in vars(options).items():
        if value is None or name not in READERS or (name in OF_A_RUN and "run" in options):
            continue
        for text in value if isinstance(value, list) else [value]:
            READERS[name](text)
    if options.command == "evaluate" and not options.recipe.endswith(".toml"):
        Recipe.load(options.recipe, options.changes)
    if options.command == "show_shipped":
        _READ[options.kind](options.name)


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 30
    assert {command.split()[1] for command in COMMANDS} >= {
        *("search", "evaluate", "front", "pick", "export", "report", "measure", "doctor"),
        *("profile", "space", "recipe"),
    }


@each_page
def test_names_in_a_text_are_known(page: str) -> None:
    """Settings, extras, targets of make, and programs."""
    text = TEXTS[page]
    sections = {name.partition(".")[0] for name in SETTINGS.by_name}
    for section, key in re.findall(r"`([a-z]+)\.([a-z_]+|\*)(?: = [^`]*)?`", text):
        assert section not in sections or key == "*" or f"{section}.{key}" in SETTINGS.by_name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*re.findall(r"(?:autocompress|'\.)\[(\w+)\]", text)} <= {
        *project["optional-dependencies"]
    }
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)} <= {*targets}
    for program in re.findall(r"\b(?:benchmarks|examples)/\w+\.py\b", text):
        assert (ROOT / program).is_file(), program


@each_page
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)", TEXTS[page]):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
            assert anchor in [slug.replace(" ", "-") for slug in slugs], anchor


@each_page
def test_generated_parts_are_those_of_the_code(page: str) -> None:
    """Else run ``python docs/generated.py``."""
    assert generated.renewed(TEXTS[page]) == TEXTS[page]


@pytest.mark.parametrize("part", generated.PARTS)
def test_every_part_stands_on_a_page(part: str) -> None:
    assert any(f"<!-- generated: {part} -->" in text for text in TEXTS.values())


@pytest.mark.parametrize(("page", "block"), list(fenced("toml")))
def test_a_file_that_is_shown_is_valid(page: str, block: str, tmp_path: Path) -> None:
    values = tomllib.loads(block)
    if "paper" in values:
        (tmp_path / "mine.toml").write_text(block, encoding="utf-8")
        Recipe.load(str(tmp_path / "mine.toml"))
    elif values.keys() & {"extends", "class"}:
        base = HardwareProfile.load(values.pop("extends", "cpu-1-thread")).as_dict()
        usual = {key: base[key] for key in ("class", "runtime", "batch_size", "sequence_length")}
        HardwareProfile.from_mapping("mine", usual | values)
    else:
        SearchSpace.from_mapping("mine", values)


@pytest.mark.parametrize(("page", "block"), list(fenced("python")))
def test_code_imports_what_there_is(page: str, block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("autocompress"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names)


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """What the page on members of one's own defines."""
    names: dict[str, Any] = {"__name__": "own"}
    for page, block in fenced("python"):
        if page == "docs/extending.md":
            exec(compile(block, page, "exec", dont_inherit=True), names)  # noqa: S102
    return names


def test_the_technique_tapers(own: dict[str, Any]) -> None:
    techniques = (*TECHNIQUES, own["Taper"]())
    scores = tuple(np.arange(8.0) for _ in range(3))
    full = Plan("bert", Structure.full([2] * 3, [8] * 3))
    candidate = vocabulary(techniques).candidate({"taper.last": 0.5})
    plan = resolve(full, candidate, Knowledge({"fisher": Importance((), scores)}), techniques)
    assert plan.structure.ffn_widths == (8, 6, 4)
    assert plan.structure.layers[2].ffn == (4, 5, 6, 7)


def test_the_quantizer_has_equally_many_of_each(own: dict[str, Any]) -> None:
    weight = np.arange(32, dtype=np.float32).reshape(4, 8)
    values, counts = np.unique(own["Quantiles"](bits=2).codes(weight).decode(), return_counts=True)
    assert [*counts] == [8] * 4 and [*values] == pytest.approx([3.875, 11.625, 19.375, 27.125])


def test_the_objective_is_of_real_tokens(own: dict[str, Any]) -> None:
    import torch

    from autocompress.interfaces import Features

    def features(first: float) -> Features:
        tokens = torch.tensor([[[first, 2.0], [3.0, 4.0], [9.0 * first, 9.0]]])
        return Features(torch.zeros(1, 2), torch.tensor([[1, 1, 0]]), {"last": tokens})

    objective = object.__new__(own["MeanState"])
    objective.matrix = None
    assert objective.loss(features(1.0), features(1.0)).item() == 0
    assert objective.loss(features(1.0), features(5.0)).item() == pytest.approx(2.0)


def test_the_sampler_goes_round(own: dict[str, Any]) -> None:
    sampler = own["Listed"]([{"layers.keep": 0.5}, {"layers.keep": 1.0}])
    asked = [sampler.ask() for _ in range(3)]
    assert [handle for handle, _ in asked] == [1, 2, 3]
    assert [point["layers.keep"] for _, point in asked] == [0.5, 1.0, 0.5]


def said() -> str:
    """Every text in the code, a line each; what is formatted into it is left out."""
    texts = set()
    for file in sorted((ROOT / "autocompress").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            pieces: Sequence[ast.AST] = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts.add("".join(str(piece.value) for piece in pieces if is_text(piece)))
    return "\n".join(text.replace("\n", " ") for text in texts)


def is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_messages_are_those_of_the_code() -> None:
    """Each stands in one text of it, but for what is formatted in (``...``)."""
    known = said()
    headings = re.findall(r"^### (.+)$", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    assert len(headings) > 40
    for heading in headings:
        pattern = ".*".join(re.escape(piece) for piece in heading.split("...") if piece.strip())
        assert re.search(pattern, known), heading


def test_the_readme_is_short() -> None:
    readme = TEXTS["README.md"].splitlines()
    assert len(readme) < 150 and "make demo" in "".join(readme[:15])


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {autocompress.__version__}\n" in citation

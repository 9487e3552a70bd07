"""Conformance of techniques, of the structural ones in particular, and their order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from autocompress.candidate import Candidate, OneOf, Real, Setting, Value
from autocompress.errors import UserError
from autocompress.interfaces import Knowledge, Lesson, Modifier, StructuralTechnique, Technique
from autocompress.knowledge import CRITERIA
from autocompress.plan import Part, Plan
from autocompress.structure import Importance, Layer, Structure
from autocompress.techniques import SETTINGS, TECHNIQUES, resolve, training_of, vocabulary
from autocompress.techniques.unit_pruning import UnitPruning

FULL = Structure.full([6, 6, 6, 6, 6], [20, 20, 20, 20, 20])
UNEVEN = Structure(
    (
        Layer(0, (1, 4), tuple(range(0, 20, 3))),
        Layer(2, (), (5,)),
        Layer(3, (0, 2, 5), ()),
        Layer(4, (3,), (0, 19)),
    )
)
STRENGTHS = (1.0, 0.9, 0.75, 0.5, 1 / 3, 0.25, 0.1, 0.01, 0.0)


def random_importance(seed: int) -> Importance:
    rng = np.random.default_rng(seed)
    return Importance(
        tuple(rng.exponential(i + 1, 6) for i in range(5)),
        tuple(rng.exponential(5 - i, 20) for i in range(5)),
    )


def latency(structure: Structure) -> float:
    """A head takes 3, a neuron 1, a layer 2, and what is in no layer 8."""
    return 8 + sum(2 + 3 * len(layer.heads) + len(layer.ffn) for layer in structure.layers)


KNOWLEDGE = Knowledge(
    {criterion: random_importance(seed) for seed, criterion in enumerate(CRITERIA)}, latency
)
STRUCTURAL = [technique for technique in TECHNIQUES if isinstance(technique, StructuralTechnique)]


def keep_setting(technique: Technique) -> str:
    """The setting that says how much is left."""
    [name] = [
        setting.name
        for setting in technique.settings
        if setting.name.endswith((".keep", ".latency"))
    ]
    return name


def reachable(technique: Technique, structure: Structure, strength: float) -> bool:
    """Without any heads and neurons a share of the latency is left."""
    empty = Structure(tuple(Layer(layer.source, (), ()) for layer in structure.layers))
    return technique.name != "latency-pruning" or latency(empty) <= strength * latency(structure)


def variants(technique: Technique) -> list[dict[str, Value]]:
    """One setting of each choice that the technique has, and none."""
    named = [(setting.name, setting.domain) for setting in technique.settings]
    return [
        {},
        *(
            {name: value}
            for name, domain in named
            if isinstance(domain, OneOf)
            for value in domain.values
        ),
    ]


def refined(technique: StructuralTechnique, structure: Structure, **settings: Any) -> Structure:
    candidate = SETTINGS.candidate(
        {name.replace("__", "."): value for name, value in settings.items()}
    )
    return technique.refine(structure, candidate, KNOWLEDGE)


def resolved(settings: dict[str, Any], knowledge: Knowledge = KNOWLEDGE) -> Structure:
    """What all techniques together leave of the full structure."""
    return resolve(Plan("bert", FULL), SETTINGS.candidate(settings), knowledge).structure


def units(structure: Structure) -> set[tuple[int, str, int]]:
    """Everything kept, by its place in the original model."""
    return {
        (layer.source, kind, i)
        for layer in structure.layers
        for kind, kept in (("layer", (0,)), ("head", layer.heads), ("neuron", layer.ffn))
        for i in kept
    }


@dataclass(frozen=True)
class Left(Part):
    """Of a technique that is not structural."""

    technique = "counting"
    what: str
    amount: int


each_technique = pytest.mark.parametrize(
    "technique", STRUCTURAL, ids=[technique.name for technique in STRUCTURAL]
)
each_structure = pytest.mark.parametrize("structure", [FULL, UNEVEN], ids=["full", "uneven"])


def test_names_and_settings_are_unique() -> None:
    names = [technique.name for technique in TECHNIQUES]
    settings = [setting.name for technique in TECHNIQUES for setting in technique.settings]
    assert len(set(names)) == len(names) and len(set(settings)) == len(settings)


@each_technique
@each_structure
def test_defaults_change_nothing(technique: StructuralTechnique, structure: Structure) -> None:
    assert refined(technique, structure) == structure
    for chosen in variants(technique):
        assert refined(technique, structure, **chosen) == structure


@each_technique
@each_structure
def test_stronger_never_keeps_more(technique: StructuralTechnique, structure: Structure) -> None:
    keep = keep_setting(technique)
    domain = SETTINGS.by_name[keep].domain
    strengths = [
        strength
        for strength in STRENGTHS
        if domain.allows(strength) and reachable(technique, structure, strength)
    ]
    assert len(strengths) >= 4
    for chosen in variants(technique):
        structures = [
            refined(technique, structure, **{keep: strength}, **chosen) for strength in strengths
        ]
        counts = [len(units(one)) for one in structures]
        assert counts == sorted(counts, reverse=True) and counts[-1] < counts[0] == len(
            units(structure)
        )
        assert all(units(one) <= units(structure) for one in structures)


@each_technique
@each_structure
def test_what_is_kept_stays_in_order(technique: StructuralTechnique, structure: Structure) -> None:
    keep = keep_setting(technique)
    for chosen in variants(technique):
        kept = refined(technique, structure, **{keep: 0.5}, **chosen)
        assert [layer.source for layer in kept.layers] == sorted(
            {layer.source for layer in kept.layers}
        )
        for layer in kept.layers:
            assert list(layer.heads) == sorted(set(layer.heads)) and list(layer.ffn) == sorted(
                set(layer.ffn)
            )


@pytest.mark.parametrize(
    "technique", [t for t in STRUCTURAL if isinstance(t, UnitPruning)], ids=["heads", "ffn"]
)
@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_weaker_pruning_contains_stronger(
    technique: UnitPruning, allocation: str, criterion: str
) -> None:
    keep = keep_setting(technique)
    section = keep.partition(".")[0]
    chosen = {f"{section}.allocation": allocation, f"{section}.importance": criterion}
    kept_units = [units(refined(technique, FULL, **{keep: share}, **chosen)) for share in STRENGTHS]
    assert all(stronger <= weaker for weaker, stronger in pairwise(kept_units))


def test_nothing_kept_of_either_unit() -> None:
    structure = resolved({"heads.keep": 0, "ffn.keep": 0})
    assert structure.head_counts == structure.ffn_widths == (0,) * 5


@pytest.mark.parametrize(
    ("keep", "sources"),
    [
        (0.6, [0, 1, 3]),
        (0.4, [0, 2]),
        (0.001, [0]),
        ([1, 4], [1, 4]),
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    ],
)
def test_layers_kept_by_share_and_by_list(keep: Value, sources: list[int]) -> None:
    structure = refined(STRUCTURAL[0], FULL, layers__keep=keep)
    assert structure == Structure(tuple(FULL.layers[i] for i in sources))


@pytest.mark.parametrize("keep", [0, 1.5, -0.5, [], [1, 0], [1, 1], [-1], [0.5], True, "half"])
def test_layers_that_cannot_be_kept_are_refused(keep: Value) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"layers\.keep is .*, allowed is a share more than 0 and at most 1, or an ascending "
            r"list"
        ),
    ):
        SETTINGS.candidate({"layers.keep": keep})


def test_layers_go_first_and_the_rest_is_ranked_by_what_is_left() -> None:
    """Layer 4 has the most important heads of all; dropped first, it takes none of the share of the
    others."""
    heads = (
        np.array([1.0, 2.0]),
        np.array([3.0, 0.5]),
        np.array([0.1, 0.2]),
        np.array([4.0, 0.0]),
        np.array([90.0, 91.0]),
    )
    ffn = tuple(np.array([float(i), 10.0 - i]) for i in range(5))
    full = Structure.full([2] * 5, [2] * 5)
    candidate = SETTINGS.candidate(
        {"layers.keep": [1, 2, 3], "heads.keep": 0.5, "ffn.keep": 0.5, "ffn.allocation": "uniform"}
    )
    knowledge = Knowledge({"fisher": Importance(heads, ffn)})
    structure = resolve(Plan("bert", full), candidate, knowledge).structure
    assert structure == Structure(
        (Layer(1, (0, 1), (1,)), Layer(2, (), (1,)), Layer(3, (0,), (1,)))
    )


def test_uncut_candidate_resolves_to_the_full_plan() -> None:
    full = Plan("bert", FULL)
    assert resolve(full, SETTINGS.candidate({}), KNOWLEDGE) == full


def test_pruning_by_latency_comes_after_the_layers_and_in_place_of_the_shares() -> None:
    """Three layers take 128; three quarters of that stay, whatever share of heads and neurons is
    asked for."""
    chosen = {"layers.keep": [0, 2, 3], "width.latency": 0.75, "heads.keep": 0.5, "ffn.keep": 0.25}
    structure = resolved(chosen)
    assert [layer.source for layer in structure.layers] == [0, 2, 3]
    assert 96 - 3 < latency(structure) <= 96
    assert structure == resolved({"layers.keep": [0, 2, 3], "width.latency": 0.75})


class Counting(Technique):
    """Leaves how many layers it was given, so that its place in the order shows."""

    name = "counting"
    settings = (Setting("counting.on", OneOf((True, False)), False, "whether it counts"),)
    part = Left

    def plan(self, plan: Plan, candidate: Candidate, knowledge: Knowledge) -> Plan:
        on = candidate.get("counting.on")
        return plan.with_part(Left("layers", len(plan.structure.layers))) if on else plan


@pytest.mark.parametrize(("first", "counted"), [(True, 5), (False, 2)], ids=["first", "last"])
def test_techniques_apply_in_their_order_and_may_leave_parts(first: bool, counted: int) -> None:
    techniques = (Counting(), *TECHNIQUES) if first else (*TECHNIQUES, Counting())
    candidate = vocabulary(techniques).candidate({"layers.keep": [0, 3], "counting.on": True})
    plan = resolve(Plan("bert", FULL), candidate, KNOWLEDGE, techniques)
    assert plan.parts == (Left("layers", counted),)
    assert [layer.source for layer in plan.structure.layers] == [0, 3]


class Training(Counting):
    """Trains along."""

    name = "training"
    settings = (Setting("training.strength", Real(0, 1), 0.0, "how much"),)

    def modifier(self, lesson: Lesson) -> Modifier | None:
        return None


def test_of_the_training_is_how_a_student_begins_and_all_that_trains_it() -> None:
    """Not what the plan says already, nor what it is converted to afterwards."""
    techniques = (*TECHNIQUES, Counting(), Training())
    trained = {"weights.start": "pooled", "recovery.steps": 40, "training.strength": 0.5}
    beside = {"layers.keep": 0.5, "heads.keep": 0.5, "counting.on": True}
    formats = {"quantization.scheme": "int4-weights", "quantization.block_size": 128}
    candidate = vocabulary(techniques).candidate(trained | beside | formats)
    training = training_of(candidate, techniques)
    assert training.as_dict() == trained
    assert training.number("recovery.learning_rate") == candidate.number("recovery.learning_rate")

"""Plans as JSON, as keys and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.plan import Part, Plan
from autocompress.structure import Layer, Structure, describe_sizes


@dataclass(frozen=True)
class Ranks(Part):
    """Of some layers' outputs, with words."""

    technique = "low-rank"
    ranks: tuple[tuple[int, int], ...]
    share: float = 1.0

    def words(self) -> str:
        return f"{len(self.ranks)} outputs of low rank"

    def terms(self, index: int, layer: Layer) -> Mapping[str, float]:
        return {"rank": float(sum(rank for own, rank in self.ranks if own == index))}


@dataclass(frozen=True)
class Silent(Part):
    """Of what nobody needs to be told."""

    technique = "silent"
    name: str

    def words(self) -> str:
        return ""


KINDS: dict[str, type[Part]] = {kind.technique: kind for kind in (Ranks, Silent)}
CUT = Structure(
    (
        Layer(0, (0, 1, 2, 3), (*range(384), 400)),
        Layer(2, (1, 3), (0, 2, 4)),
        Layer(5, (), (7,)),
    )
)
PARTS = (Silent("x"), Ranks(((0, 96), (2, 8)), 0.5))


def through_json(plan: Plan) -> Plan:
    return Plan.from_dict(json.loads(json.dumps(plan.as_dict())), KINDS)


def test_as_json() -> None:
    assert json.loads(json.dumps(Plan("bert", CUT, PARTS).as_dict())) == {
        "family": "bert",
        "layers": [
            {"source": 0, "heads": "0-3", "ffn": "0-383 400"},
            {"source": 2, "heads": "1 3", "ffn": "0 2 4"},
            {"source": 5, "heads": "", "ffn": "7"},
        ],
        "parts": [
            {"technique": "silent", "name": "x"},
            {"technique": "low-rank", "ranks": [[0, 96], [2, 8]], "share": 0.5},
        ],
    }


@pytest.mark.parametrize("parts", [(), PARTS[:1], PARTS, PARTS[::-1]], ids=len)
def test_json_round_trip(parts: tuple[Part, ...]) -> None:
    plan = Plan("gpt2", CUT, parts)
    reread = through_json(plan)
    assert reread == plan and hash(reread) == hash(plan)
    assert reread.as_dict() == plan.as_dict()


indices = st.sets(st.integers(0, 40)).map(lambda unordered: tuple(sorted(unordered)))


@given(st.lists(st.tuples(indices, indices), min_size=1, max_size=3))
@settings(deadline=None)
def test_any_indices_come_back(layers: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    structure = Structure(tuple(Layer(i, heads, ffn) for i, (heads, ffn) in enumerate(layers)))
    assert through_json(Plan("bert", structure)).structure == structure


@pytest.mark.parametrize(
    "other",
    [
        Plan("roberta", CUT, PARTS),
        Plan("bert", Structure(CUT.layers[:2]), PARTS),
        Plan("bert", CUT),
        Plan("bert", CUT, (PARTS[0], Ranks(((0, 96), (2, 9)), 0.5))),
        Plan("bert", CUT, PARTS[::-1]),
    ],
    ids=["family", "structure", "no-parts", "values", "order"],
)
def test_what_tells_plans_apart(other: Plan) -> None:
    assert len({Plan("bert", CUT, PARTS), Plan("bert", CUT, PARTS), other}) == 2
    assert through_json(other) == other != Plan("bert", CUT, PARTS)


def test_a_part_of_an_unknown_technique_is_refused() -> None:
    value = Plan("bert", CUT, PARTS).as_dict()
    message = "it was made by the technique 'low-rank', which is not known here"
    with pytest.raises(ValueError, match=f"^{message}$"):
        Plan.from_dict(value, {"silent": Silent})


def test_parts_in_words() -> None:
    plan = Plan("bert", CUT, PARTS)
    sizes: dict[str, Any] = {"layers": [0, 2, 5], "heads": [4, 2, 0], "ffn": [385, 3, 1]}
    assert plan.sizes() == sizes | {"parts": ["2 outputs of low rank"]}
    assert describe_sizes(plan.sizes()) == "3 layers, heads 0-4, FFN 1-385, 2 outputs of low rank"
    for parts in ((), PARTS[:1]):
        assert Plan("bert", CUT, parts).sizes() == sizes


def test_a_technique_has_one_part_at_most_and_the_later_one_stands() -> None:
    plan = Plan("bert", CUT).with_part(Ranks(((0, 1),))).with_part(Silent("x"))
    assert plan.parts == (Ranks(((0, 1),)), Silent("x"))
    again = plan.with_part(Ranks(((0, 2),)))
    assert again.parts == (Silent("x"), Ranks(((0, 2),)))
    assert (again.part("low-rank"), again.part("silent")) == (Ranks(((0, 2),)), Silent("x"))
    assert again.part("else") is None
    assert plan.part("low-rank") == Ranks(((0, 1),))  # left as it was

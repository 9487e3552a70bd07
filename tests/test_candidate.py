from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from autocompress.candidate import (
    Domain,
    EitherOf,
    Flag,
    Integer,
    OneOf,
    Positive,
    Real,
    Setting,
    Settings,
    SubsetOf,
    Text,
    freeze,
    thaw,
)
from autocompress.errors import UserError
from autocompress.techniques import SETTINGS

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("domain", "allowed", "refused"),
    [
        (OneOf((32, 128)), [32, 128], [64, 32.0, "32", True]),
        (OneOf((True, 0)), [True, 0], [1, False, 0.0]),
        (SubsetOf(("a", "b")), [("a",), ("b", "a")], [(), ("a", "a"), ("c",), ("a", 1), "a"]),
        (Real(0, 1), [0, 1, 0.0, 1.0, 1e-9], [-1e-9, 1.0001, True, False, "0.5", (0.5,), NAN, INF]),
        (Integer(0, 5), [0, 5], [-1, 6, 2.0, True, False, "2", (2,)]),
        (Positive(), [1, 1e-9, 1e300], [0, 0.0, -1, True, "1", (1,), NAN, INF]),
        (Positive("a share", 1), [1, 0.5], [0, 1.01, True, NAN]),
        (Flag(), [True, False], [0, 1, "true", ()]),
        (Text(), ["", "a\nb"], [1, True, ("a",)]),
        (Text("a or b", "a|b.*"), ["a", "b", "b\nc"], ["", "ac", "a\n", "cb"]),
        (EitherOf(Integer(1, 5), OneOf(("all",))), [1, 5, "all"], [0, "1", True, ("all",)]),
        (
            SETTINGS.by_name["layers.keep"].domain,
            [1, 1.0, 1e-9, (0,), (0, 2, 5)],
            [0, 0.0, 1.01, True, "1", NAN, (), (2, 0), (1, 1), (-1, 0), (0.0,), (False, True)],
        ),
    ],
    ids=str,
)
def test_the_edges_of_every_domain(domain: Domain, allowed: list[Any], refused: list[Any]) -> None:
    assert [value for value in allowed if not domain.allows(value)] == []
    assert [value for value in refused if domain.allows(value)] == []


def test_either_domain_gives_the_one_form_of_its_values() -> None:
    share_or_all = EitherOf(Real(0, 1), OneOf(("all",)))
    assert [repr(share_or_all.canonical(value)) for value in (1, "all")] == ["1.0", "'all'"]


UNTOUCHED = {
    "layers.keep": 1.0,
    "width.latency": 1.0,
    "heads.keep": 1.0,
    "ffn.keep": 1.0,
    "recovery.steps": 0,
    "quantization.scheme": "fp32",
}


def test_an_untouched_model_has_no_settings_and_the_defaults_of_those_that_say_so() -> None:
    untouched = SETTINGS.candidate({})
    assert (untouched.settings, untouched.as_dict()) == ((), {})
    # settings that other techniques add stand among these, at what leaves the model as it is
    assert untouched.active.items() >= UNTOUCHED.items()
    assert SETTINGS.candidate(UNTOUCHED) == untouched
    assert "recovery.temperature" not in untouched.active


def test_a_setting_that_is_added_later_changes_no_candidate() -> None:
    added = Setting("depth.noise", Real(0, 1), 0.0, "noise")
    later = Settings((added,), tuple(SETTINGS), (replace(added, name="zoom.noise"),))
    chosen = {"layers.keep": 0.5, "recovery.steps": 8, "quantization.scheme": "int8-dynamic"}
    now, then = SETTINGS.candidate(chosen), later.candidate(chosen)
    assert now == then and hash(now) == hash(then) and now.as_dict() == then.as_dict()
    assert then.number("depth.noise") == 0.0
    assert later.candidate({**chosen, "depth.noise": 0.5}) != now


@pytest.mark.parametrize("keep", [1, [0, 1, 3]], ids=["all-layers", "listed-layers"])
def test_the_rule_means_nothing_beside(keep: Any) -> None:
    chosen = {
        SETTINGS.candidate({"layers.keep": keep, "layers.rule": rule}) for rule in ("top", "bottom")
    }
    assert chosen == {SETTINGS.candidate({"layers.keep": keep})}


@pytest.mark.parametrize(
    ("beside", "name", "value"),
    [
        ({"heads.keep": 0}, "heads.importance", "magnitude"),
        ({"heads.keep": 1}, "heads.allocation", "uniform"),
        ({"ffn.keep": 0.0}, "ffn.allocation", "uniform"),
        ({"width.latency": 0.5}, "heads.keep", 0.5),
        ({"width.latency": 0.5}, "ffn.keep", 0.0),
        ({"width.latency": 0.5, "heads.keep": 0.5}, "heads.importance", "magnitude"),
        ({"width.latency": 0.5, "ffn.keep": 0.5}, "ffn.allocation", "uniform"),
        ({"recovery.steps": 0}, "recovery.learning_rate", 1e-3),
        ({"recovery.steps": 0}, "recovery.temperature", 4.0),
        (
            {"recovery.steps": 8, "recovery.objectives": ["hidden-states"]},
            "recovery.temperature",
            4.0,
        ),
        ({"recovery.steps": 8, "recovery.objectives": ["logits"]}, "recovery.layer_map", "last"),
        ({"recovery.steps": 8, "recovery.hard_label_weight": 1}, "recovery.objectives", ["cosine"]),
        ({"recovery.steps": 8, "recovery.hard_label_weight": 1}, "recovery.label_phase", 0.5),
        ({"recovery.steps": 8, "recovery.hard_label_weight": 1}, "recovery.unlabeled_share", 0.5),
        ({"recovery.steps": 8, "recovery.objectives": ["cosine"]}, "recovery.cosine_weight", 3.0),
        (
            {"recovery.steps": 8, "recovery.objectives": ["logits", "cosine"]},
            "recovery.hidden_states_weight",
            3.0,
        ),
        (
            {"recovery.steps": 8, "recovery.objectives": ["logits", "cosine"]},
            "recovery.masked_share",
            0.5,
        ),
        ({"layers.keep": 1.0}, "weights.start", "pooled"),
        ({"quantization.scheme": "int8-dynamic"}, "quantization.block_size", 128),
        ({"quantization.scheme": "fp16"}, "quantization.spared", "first"),
    ],
)
def test_inactive_settings_are_dropped(beside: dict[str, Any], name: str, value: Any) -> None:
    with_it, without = SETTINGS.candidate({**beside, name: value}), SETTINGS.candidate(beside)
    assert with_it == without and hash(with_it) == hash(without)
    assert name not in with_it.active and name not in with_it.as_dict()


@pytest.mark.parametrize(
    ("beside", "name", "value"),
    [
        ({"layers.keep": 0.5}, "layers.rule", "top"),
        ({"heads.keep": 0.5}, "heads.importance", "magnitude"),
        ({"ffn.keep": 0.5}, "ffn.allocation", "uniform"),
        ({"layers.keep": 0.5}, "width.latency", 0.5),
        ({"layers.keep": 0.5}, "weights.start", "embeddings"),
        ({"recovery.steps": 8}, "recovery.temperature", 4.0),
        ({"recovery.steps": 8}, "recovery.data_share", 0.5),
        ({"recovery.steps": 8}, "recovery.label_phase", 0.5),
        (
            {"recovery.steps": 8, "recovery.objectives": ["logits", "cosine"]},
            "recovery.cosine_weight",
            4.0,
        ),
        (
            {"recovery.steps": 8, "recovery.objectives": ["random-layers"]},
            "recovery.redraw_steps",
            4,
        ),
        (
            {"recovery.steps": 8, "recovery.objectives": ["adversarial-logits"]},
            "recovery.masked_share",
            0.5,
        ),
        (
            {"recovery.steps": 8, "recovery.objectives": ["annealed-logits"]},
            "recovery.annealing_stages",
            4,
        ),
        (
            {"recovery.steps": 8, "recovery.objectives": ["hidden-states"]},
            "recovery.layer_map",
            "last",
        ),
        ({"quantization.scheme": "int4-weights"}, "quantization.block_size", 128),
        ({"quantization.scheme": "int8-static"}, "quantization.spared", "ends"),
    ],
)
def test_active_settings_tell_candidates_apart(
    beside: dict[str, Any], name: str, value: Any
) -> None:
    assert SETTINGS.candidate({**beside, name: value}) != SETTINGS.candidate(beside)
    assert SETTINGS.candidate({**beside, name: value}).as_dict()[name] == value


def test_settings_stand_in_order_of_application() -> None:
    chosen = {"quantization.scheme": "int8-dynamic", "ffn.keep": 0.0, "layers.keep": [0, 2]}
    candidate = SETTINGS.candidate(chosen)
    assert list(candidate.as_dict().items()) == [
        ("layers.keep", [0, 2]),
        ("ffn.keep", 0.0),
        ("quantization.scheme", "int8-dynamic"),
    ]
    known = [
        ("layers.keep", (0, 2)),
        ("width.latency", 1.0),
        ("heads.keep", 1.0),
        ("ffn.keep", 0.0),
        ("weights.start", "copied"),
        ("recovery.steps", 0),
        ("quantization.scheme", "int8-dynamic"),
        ("quantization.spared", "none"),
    ]
    assert [pair for pair in candidate.active.items() if pair in known] == known


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"layers.keep": [0, 2, 5], "heads.keep": 0.25, "heads.allocation": "uniform"},
        {
            "recovery.steps": 800,
            "recovery.objectives": ["logits", "value-relations"],
            "recovery.learning_rate": 1e-4,
        },
        {
            "layers.keep": 1 / 3,
            "quantization.scheme": "int8-weights",
            "quantization.block_size": 128,
        },
    ],
)
def test_json_round_trip(chosen: dict[str, Any]) -> None:
    candidate = SETTINGS.candidate(chosen)
    read_back = SETTINGS.candidate(json.loads(json.dumps(candidate.as_dict())))
    assert read_back == candidate and read_back.active == candidate.active
    everything = {name: thaw(value) for name, value in candidate.active.items()}
    assert SETTINGS.candidate(everything) == candidate  # as older runs have it


def test_reading_a_candidate() -> None:
    candidate = SETTINGS.candidate({"layers.keep": [0, 2], "heads.keep": 0.5})
    assert candidate.get("layers.keep") == (0, 2)
    assert candidate.number("heads.keep") == 0.5
    assert candidate.text("heads.importance") == "fisher"
    assert candidate.text("layers.rule", "top") == "top"
    assert candidate.number("ffn.keep", 0.25) == 1.0  # active, so no need of what is given
    with pytest.raises(KeyError, match=re.escape("layers.rule")):
        candidate.get("layers.rule")
    with pytest.raises(TypeError, match=re.escape("layers.keep is (0, 2), no number")):
        candidate.number("layers.keep")
    with pytest.raises(TypeError, match=re.escape("heads.keep is 0.5, no name")):
        candidate.text("heads.keep")


def test_only_some_of_its_settings() -> None:
    candidate = SETTINGS.candidate(
        {"heads.keep": 0.5, "recovery.steps": 8, "quantization.scheme": "int8-dynamic"}
    )
    names = ("heads.allocation", "heads.keep", "ffn.keep", "layers.rule")
    subset = candidate.only(names)
    assert subset == SETTINGS.candidate({"heads.keep": 0.5, "recovery.steps": 99}).only(names)
    assert subset.as_dict() == {"heads.keep": 0.5}
    assert dict(subset.active) == {
        "heads.keep": 0.5,
        "heads.allocation": "global",
        "ffn.keep": 1.0,
    }
    assert subset != SETTINGS.candidate({"heads.keep": 0.25}).only(names)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"layers.kep": 0.5},
            "here: unknown setting 'layers.kep' (did you mean 'layers.keep'?)",
        ),
        ({"heads.keep": 1.5}, "here: heads.keep is 1.5, allowed is a number from 0 to 1"),
        ({"heads.keep": True}, "here: heads.keep is True, allowed is"),
        (
            {"width.latency": 0.01},
            "here: width.latency is 0.01, allowed is a number from 0.02 to 1",
        ),
        (
            {"recovery.steps": {"low": 1}},
            "here: recovery.steps is {'low': 1}, allowed is a whole number from 0 to 1000000",
        ),
        (
            {"layers.rule": "middle", "layers.keep": 1.0},
            "here: layers.rule is 'middle', allowed is one of uniform, ",
        ),
    ],
)
def test_mistakes_are_named(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        SETTINGS.candidate(chosen, "here")


def test_freeze_and_thaw() -> None:
    assert freeze([1, ["a", True]]) == (1, ("a", True))
    assert thaw((1, ("a", True))) == [1, ["a", True]]
    for value in (None, {"a": 1}, [None]):
        with pytest.raises(TypeError, match="is no setting's value"):
            freeze(value)

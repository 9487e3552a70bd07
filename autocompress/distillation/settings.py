"""The settings of recovery training; no torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autocompress.candidate import Integer, OneOf, Real, Setting, SubsetOf, Value
from autocompress.distillation.layer_maps import LAYER_MAPS

OBJECTIVES: tuple[str, ...] = (
    "logits",
    "hidden-states",
    "normalized-hidden-states",
    "cosine",
    "attention-maps",
    "value-relations",
    "random-layers",
    "adversarial-logits",
    "annealed-logits",
)
UNLABELED_SHARE = "recovery.unlabeled_share"
CLEANED = "recovery.cleaned"


def weight_setting(objective: str) -> str:
    """The name of the setting that holds an objective's weight."""
    return f"recovery.{objective.replace('-', '_')}_weight"


def _trains(settings: Mapping[str, Value]) -> bool:
    return settings["recovery.steps"] != 0


def _distils(settings: Mapping[str, Value]) -> bool:
    return _trains(settings) and settings["recovery.hard_label_weight"] != 1


def _with(*names: str, others: bool = False) -> Callable[[Mapping[str, Value]], bool]:
    """Whether one of these objectives is chosen; with ``others`` beside at least one more."""

    def holds(settings: Mapping[str, Value]) -> bool:
        chosen = settings["recovery.objectives"]
        assert isinstance(chosen, tuple)
        return _distils(settings) and any(name in chosen for name in names) and len(chosen) > others

    return holds


RECOVERY_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "recovery.steps",
        Integer(0, 1_000_000),
        0,
        "training steps after the cut, batches of 32; in a search the most",
    ),
    Setting(
        "recovery.learning_rate",
        Real(1e-7, 1e-1),
        2e-4,
        "peak of AdamW's learning rate",
        when=_trains,
    ),
    Setting(
        "recovery.data_share",
        Real(0.001, 1),
        1.0,
        "share of the labelled training data that is used",
        when=_trains,
    ),
    Setting(
        CLEANED,
        OneOf((False, True)),
        False,
        "learn from text without repeated lines, HTML and lines of non-letters",
        when=_trains,
    ),
    Setting(
        "recovery.hard_label_weight",
        Real(0, 1),
        0.5,
        "weight of the labels; the objectives have the rest, at 1 there is no teacher",
        when=_trains,
    ),
    Setting(
        "recovery.label_phase",
        Real(0, 0.9),
        0.0,
        "share of the steps, at the end, by the labels alone",
        when=_distils,
    ),
    Setting(
        "recovery.objectives",
        SubsetOf(OBJECTIVES),
        ("logits",),
        "what the student matches in its teacher",
        when=_distils,
    ),
    *(
        Setting(
            weight_setting(name),
            Real(0.001, 1000),
            1.0,
            f"weight of {name} in the sum",
            when=_with(name, others=True),
        )
        for name in OBJECTIVES
    ),
    Setting(
        "recovery.temperature",
        Real(0.1, 100),
        2.0,
        "softening of the logits that are matched",
        when=_with("logits", "adversarial-logits"),
    ),
    Setting(
        "recovery.layer_map",
        OneOf(tuple(LAYER_MAPS)),
        "uniform",
        "which teacher layer each student layer matches",
        when=_with("hidden-states", "normalized-hidden-states"),
    ),
    Setting(
        "recovery.random_layers",
        OneOf(("layer-wise", "concatenated")),
        "layer-wise",
        "whether random layers are matched one by one or as one vector",
        when=_with("random-layers"),
    ),
    Setting(
        "recovery.redraw_steps",
        Integer(1, 1_000_000),
        100,
        "steps with the same random layers",
        when=_with("random-layers"),
    ),
    Setting(
        "recovery.masked_share",
        Real(0.01, 1),
        0.3,
        "share of tokens that are replaced",
        when=_with("adversarial-logits"),
    ),
    Setting(
        "recovery.annealing_stages",
        Integer(1, 1000),
        10,
        "temperatures of annealed logits, from this one down to 1",
        when=_with("annealed-logits"),
    ),
    Setting(
        UNLABELED_SHARE,
        Real(0, 1),
        0.0,
        "share of each batch that is unlabelled text",
        when=_distils,
    ),
)

"""The settings of recovery training; no torch here."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.candidate import Integer, OneOf, Real, Setting, SubsetOf, Value
from autocompress.distillation.layer_maps import LAYER_MAPS

OBJECTIVES: tuple[str, ...] = ("logits", "hidden-states", "attention-maps", "value-relations")
UNLABELED_SHARE = "recovery.unlabeled_share"


def _trains(settings: Mapping[str, Value]) -> bool:
    return settings["recovery.steps"] != 0


def _with_objective(name: str, settings: Mapping[str, Value]) -> bool:
    objectives = settings["recovery.objectives"]
    return _trains(settings) and isinstance(objectives, tuple) and name in objectives


RECOVERY_SETTINGS: tuple[Setting, ...] = (
    Setting("recovery.steps", Integer(0, 1_000_000), 0, "training steps after the cut, batches of 32"),
    Setting("recovery.learning_rate", Real(1e-7, 1e-1), 2e-4, "peak of AdamW's learning rate", when=_trains),
    Setting("recovery.objectives", SubsetOf(OBJECTIVES), ("logits",), "what the student matches in its teacher", when=_trains),
    Setting(
        "recovery.temperature",
        Real(0.1, 100),
        2.0,
        "softening of the logits that are matched",
        when=lambda s: _with_objective("logits", s),
    ),
    Setting(
        "recovery.layer_map",
        OneOf(tuple(LAYER_MAPS)),
        "uniform",
        "which teacher layer each student layer matches",
        when=lambda s: _with_objective("hidden-states", s),
    ),
    Setting("recovery.hard_label_weight", Real(0, 1), 0.5, "weight of the labels; the objectives have the rest", when=_trains),
    Setting(UNLABELED_SHARE, Real(0, 1), 0.0, "share of each batch that is unlabelled text", when=_trains),
)

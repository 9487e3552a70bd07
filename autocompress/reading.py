"""What a task read of its data, as the screen, ``run.json`` and the report say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SPLITS = ("train", "validation", "test")
_MOST_CLASSES = 20
"""That are listed, those with the most training examples first."""


@dataclass(frozen=True)
class Reading:
    """What is left of the data, and what was left out.

    Args:
        columns: names, by role: ``text``, ``text pair``, ``label``.
        rows: examples by split, and ``unlabeled`` ones; of a language model blocks and windows.
        dropped: what was left out, by reason.
        cut: the splits that were cut from the training data.
        classes: examples of each class, by split; none where models answer with tokens.
        median_tokens: of a text, as the model takes it; 0 in older files, where nobody counted.
        longest_tokens: likewise.
        text: what else is to be said, of a language model.
    """

    columns: Mapping[str, str]
    rows: Mapping[str, int]
    dropped: Mapping[str, int]
    cut: tuple[str, ...] = ()
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    median_tokens: float = 0
    longest_tokens: int = 0
    text: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reading:
        """From the ``data`` of a ``run.json``; that of an earlier version says less."""
        return cls(
            data.get("columns", {}),
            {name: data[name] for name in (*SPLITS, "unlabeled")},
            data["dropped"],
            tuple(data.get("cut", ())),
            data.get("classes", {}),
            data.get("median_tokens", 0),
            data.get("longest_tokens", 0),
            data.get("text", ""),
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON; the inverse of ``from_json``."""
        values = asdict(self)
        return {**values.pop("rows"), **values}

    def lines(self, timed: Mapping[str, object]) -> dict[str, str]:
        """All of it in words, by what they are of.

        Args:
            timed: the tokens that a device times, by name of its profile.
        """
        examples = ", ".join(
            f"{name} {self.rows[name]}{' (cut from the data)' if name in self.cut else ''}"
            for name in SPLITS
        )
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        lengths = "".join(
            f"; {name} times {length if isinstance(length, int) else 'them as long as they are'}"
            for name, length in timed.items()
        )
        lines = {
            "columns": ", ".join(f"{role} {name!r}" for role, name in self.columns.items()),
            "examples": f"{examples}, unlabelled {self.rows['unlabeled']}",
            "examples dropped": dropped,
            "classes": self._classes(),
            "tokens of a text": (
                f"median {self.median_tokens:g}, longest {self.longest_tokens}{lengths}"
                if self.longest_tokens
                else ""
            ),
            "text": self.text,
        }
        return {name: line for name, line in lines.items() if line}

    def _classes(self) -> str:
        if not self.classes:
            return ""
        train = self.classes["train"]
        frequent = sorted(train, key=lambda name: -train[name])[:_MOST_CLASSES]
        counts = [
            f"{name}: {', '.join(str(self.classes[split][name]) for split in SPLITS)}"
            for name in train
            if name in frequent
        ]
        more = f"; and {len(train) - len(counts)} more" if len(train) > len(counts) else ""
        return f"{'; '.join(counts)}{more} (in {', '.join(SPLITS)})"

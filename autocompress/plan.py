"""What a student is made of, before it has any weights.

A plan is who builds it, the structure that is left of the model it is cut from, and parts for
everything else, in order of application. Techniques make plans; loading a student from disk builds
the same shapes from the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.structure import Layer, Structure

if TYPE_CHECKING:
    from torch import nn

    from autocompress.quantizers.codes import Codes


@dataclass(frozen=True)
class Part:
    """What one technique makes of a student beside its structure; subclasses are frozen dataclasses
    whose fields are hashable JSON values, tuples where JSON has lists.

    ``technique`` is the name of the technique that builds it.
    """

    technique: ClassVar[str]

    def words(self) -> str:
        """For people, such as ``FFN outputs of rank 96``; nothing where they need not know."""
        return ""

    def terms(self, index: int, layer: Layer) -> Mapping[str, float]:
        """What a latency table counts of it in a layer: amounts by name, each of which gets a cost
        of its own, or a gain. None of a part that changes no shape.

        Args:
            index: of the layer, counted from 0 in the student.
        """
        return {}

    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """Of the inputs of modules, by path, where training learned them."""
        return {}

    def codes(self, model: nn.Module) -> Sequence[Codes] | None:
        """Of the matrices of a model that is made to be stored in few bytes, where there are codes
        of them; None where it is not."""
        return None


@dataclass(frozen=True)
class Plan:
    """Hashable; JSON both ways by ``as_dict`` and ``from_dict``.

    Args:
        family: who builds it, a name in ``families.FAMILIES``.
        structure: the kept layers, heads and FFN neurons.
        parts: at most one of each technique, in order of application.
    """

    family: str
    structure: Structure
    parts: tuple[Part, ...] = ()

    def part(self, technique: str) -> Part | None:
        """The part of a technique; None where it has none."""
        return next((part for part in self.parts if part.technique == technique), None)

    def with_part(self, part: Part) -> Plan:
        """The plan with one more part, in place of any that the same technique left before."""
        others = tuple(own for own in self.parts if own.technique != part.technique)
        return replace(self, parts=(*others, part))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """What its parts learned, see ``Part.ranges``."""
        return {name: pair for part in self.parts for name, pair in part.ranges().items()}

    def codes(self, model: nn.Module) -> list[Codes] | None:
        """What its parts know, see ``Part.codes``."""
        told = [codes for part in self.parts if (codes := part.codes(model)) is not None]
        return [codes for of_part in told for codes in of_part] if told else None

    def sizes(self) -> dict[str, Any]:
        """As JSON, what people are told of it: layers, heads, neurons, and its parts in words."""
        words = [text for part in self.parts if (text := part.words())]
        return self.structure.sizes() | ({"parts": words} if words else {})

    def as_dict(self) -> dict[str, Any]:
        """As JSON, all of it."""
        return {
            "family": self.family,
            "layers": [
                {
                    "source": layer.source,
                    "heads": _spans(layer.heads),
                    "ffn": _spans(layer.ffn),
                }
                for layer in self.structure.layers
            ],
            "parts": [{"technique": part.technique, **asdict(part)} for part in self.parts],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], kinds: Mapping[str, type[Part]]) -> Plan:
        """The inverse of ``as_dict``.

        Args:
            kinds: of the parts, by name of their technique.

        Raises:
            ValueError: a part of a technique that is not known here.
        """
        layers = tuple(
            Layer(layer["source"], _indices(layer["heads"]), _indices(layer["ffn"]))
            for layer in value["layers"]
        )
        return cls(value["family"], Structure(layers), _parts(value["parts"], kinds))


def _parts(
    values: Sequence[Mapping[str, Any]], kinds: Mapping[str, type[Part]]
) -> tuple[Part, ...]:
    parts = []
    for value in values:
        name = value["technique"]
        if name not in kinds:
            raise ValueError(f"it was made by the technique {name!r}, which is not known here")
        fields = {key: _frozen(item) for key, item in value.items() if key != "technique"}
        parts.append(kinds[name](**fields))
    return tuple(parts)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _spans(indices: Sequence[int]) -> str:
    """Ascending indices in short: ``0-383 400``."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return " ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _indices(spans: str) -> tuple[int, ...]:
    indices: list[int] = []
    for span in spans.split():
        low, _, high = span.partition("-")
        indices += range(int(low), int(high or low) + 1)
    return tuple(indices)

"""What a number format promises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.candidate import Settings, Value
from autocompress.families import family_of
from autocompress.formats import FORMAT_SETTINGS, FORMATS, convert
from autocompress.graphs.export import to_onnx
from autocompress.graphs.reading import layer_count
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Format
from autocompress.structure import Structure
from autocompress.testing.models import build, padded, texts, tiny, with_all
from autocompress.testing.suite import Suite

_SIZES = {"hidden_size": 192, "vocab_size": 200, "num_hidden_layers": 4}
_OVERHEAD = 0.2
"""Bytes of a weight, of what a layer has beside its matrices: biases, norms, nodes, scales."""
_BLOCK = 32


class FormatSuite(Suite):
    """A converted file runs, answers nearly as the fp32 one, and its layers have the bytes that
    the format says, those that are spared more.

    Attributes:
        members: the formats.
        tolerances: by name, the largest root mean square of the error of a logit, as a share of
            the logits' standard deviation; else 0.8, which is much: random models round badly.
        configs: of the models; see ``models.tiny``.
    """

    members: ClassVar[Iterable[Format]] = ()
    tolerances: ClassVar[Mapping[str, float]] = {}
    configs: ClassVar[Sequence[Any]] = (
        tiny("bert", "BertForSequenceClassification", intermediate_size=512, **_SIZES),
        tiny("gpt2", "GPT2LMHeadModel", n_inner=512, **_SIZES),
    )

    @classmethod
    def cases(cls) -> dict[str, Sequence[tuple[str, Any]]]:
        return {"config": [(config.architectures[0], config) for config in cls.configs]}

    @pytest.fixture(scope="class")
    @classmethod
    def sources(cls, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
        return [Source.of(config, tmp_path_factory.mktemp("graphs")) for config in cls.configs]

    @pytest.fixture
    def source(self, config: Any, sources: list[Source]) -> Source:
        return sources[self.configs.index(config)]

    @pytest.fixture(autouse=True)
    def known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A member need not be in the table."""
        for name, member in self.named().items():
            monkeypatch.setitem(FORMATS, name, member)

    def test_a_file_runs_and_answers_nearly_as_fp32(
        self, member: Format, source: Source, tmp_path: Path
    ) -> None:
        report = source.convert(member, tmp_path / "model.onnx")
        assert report["scheme"] == member.name
        assert report["layers"] == [member.name] * source.layers
        assert layer_count(tmp_path / "model.onnx") == source.layers
        assert source.error(tmp_path / "model.onnx") <= self.tolerances.get(member.name, 0.8)

    def test_weights_have_the_bytes_it_says(
        self, member: Format, source: Source, tmp_path: Path
    ) -> None:
        """Those of half of the layers, which are what two files differ by."""
        for name, whole in (("whole", True), ("half", False)):
            source.convert(member, tmp_path / name, whole=whole)
        sizes = [(tmp_path / name).stat().st_size for name in ("whole", "half")]
        bytes_per_weight = (sizes[0] - sizes[1]) / source.weights
        stored = FORMATS[member.stored].bytes
        assert stored <= bytes_per_weight <= stored + _overhead(member)

    def test_what_is_stored_is_a_format_of_its_own(self, member: Format) -> None:
        stored = FORMATS[member.stored]
        assert stored.stored == stored.name and member.bytes > 0
        assert member.more_bits is None or FORMATS[member.more_bits].bytes > member.bytes

    def test_spared_layers_keep_more_bits(
        self, member: Format, source: Source, tmp_path: Path
    ) -> None:
        """By as many bytes as the tables say, and all spared answer no worse."""
        none, half = range(0), range(source.layers // 2)
        if member.more_bits is None:
            report = source.convert(member, tmp_path / "spared", spared=half)
            assert report["layers"] == [member.name] * source.layers
            return
        sizes, errors = [], []
        for spared in (none, half, range(source.layers)):
            report = source.convert(member, tmp_path / "spared", spared=spared)
            more = [member.more_bits if i in spared else member.name for i in range(source.layers)]
            assert report["layers"] == more
            sizes.append((tmp_path / "spared").stat().st_size)
            errors.append(source.error(tmp_path / "spared"))
        richer = FORMATS[FORMATS[member.more_bits].stored].bytes
        bytes_added = (sizes[1] - sizes[0]) / source.weights
        expected = richer - FORMATS[member.stored].bytes
        assert bytes_added == pytest.approx(expected, abs=_overhead(member))
        assert errors[2] <= errors[0]

    def test_the_same_bytes_again(self, member: Format, source: Source, tmp_path: Path) -> None:
        before = source.path(whole=False).read_bytes()
        for name in ("first", "second"):
            source.convert(member, tmp_path / name, whole=False)
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
        assert source.path(whole=False).read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


@dataclass(frozen=True)
class Source:
    """Graphs of a model and of its first half, in fp32.

    Args:
        weights: in the matrices of the other half.
        answers: of the whole graph.
    """

    folder: Path
    layers: int
    weights: int
    by_token: bool
    answers: NDArray[np.floating[Any]]

    @classmethod
    def of(cls, config: Any, folder: Path) -> Source:
        model, family = build(config), family_of(config.model_type)
        layers = family.structure(model).layers
        half = family.cut(model, Structure(layers[: len(layers) // 2]))
        for name, one in (("whole", model), ("half", half)):
            to_onnx(one, folder / f"{name}.onnx", _batches(0, 8)[0])
        blocks = [family.part(model, i, "block") for i in range(len(layers) // 2, len(layers))]
        matrices = [p for block in blocks for p in block.parameters() if p.dim() > 1]
        answers = _answers(folder / "whole.onnx")
        return cls(folder, len(layers), sum(p.numel() for p in matrices), family.causal, answers)

    def path(self, *, whole: bool = True) -> Path:
        return self.folder / ("whole.onnx" if whole else "half.onnx")

    def convert(
        self, member: Format, target: Path, *, spared: Sequence[int] = (), whole: bool = True
    ) -> dict[str, Any]:
        chosen: dict[str, Value] = {"quantization.scheme": member.name}
        if member.in_blocks:
            chosen["quantization.block_size"] = _BLOCK
        if spared and member.more_bits is not None:
            chosen["quantization.spared"] = tuple(spared)
        calibration = [dict(batch.inputs) for batch in _batches(0, 8)]
        candidate = with_all(Settings(FORMAT_SETTINGS), chosen)
        return convert(
            self.path(whole=whole), target, candidate, calibration, by_token=self.by_token
        )

    def error(self, path: Path) -> float:
        """Of the answers of a file."""
        difference = _answers(path) - self.answers
        return float(np.sqrt(np.mean(difference**2)) / self.answers.std())


def _overhead(member: Format) -> float:
    return _OVERHEAD + (4 / _BLOCK if member.in_blocks else 0)


def _batches(seed: int, rows: int) -> list[Any]:
    lengths = [[2 + i % 8 for i in range(rows)], [12] * rows]
    return [padded(texts(some, _SIZES["vocab_size"], seed)) for some in lengths]


def _answers(path: Path) -> NDArray[np.floating[Any]]:
    """To all real texts, or tokens."""
    by_batch = []
    for batch in _batches(1, 32):
        answers = predict(path, [batch.inputs])
        real = batch.inputs["attention_mask"] == 1
        by_batch.append(answers[real] if answers.ndim == 3 else answers)
    return np.concatenate(by_batch)

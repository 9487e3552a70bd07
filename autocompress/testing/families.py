"""What a model family promises."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.graphs.export import to_onnx
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Batch, Family
from autocompress.structure import Structure
from autocompress.testing.models import BATCH, build, logits, same, weights
from autocompress.testing.suite import Suite

Cut = Callable[[Structure], Structure]


def _each(**left: Any) -> Cut:
    """These heads or neurons in all layers."""
    return lambda full: Structure(
        tuple(
            replace(layer, **{kind: getattr(layer, kind)[kept] for kind, kept in left.items()})
            for layer in full.layers
        )
    )


CUTS: Mapping[str, Cut] = {
    "fewer heads": _each(heads=slice(1, None, 2)),
    "fewer neurons": _each(ffn=slice(0, None, 3)),
    "fewer layers": lambda full: Structure(full.layers[::2]),
    "no heads": _each(heads=slice(0)),
    "no neurons": _each(ffn=slice(0)),
    "every layer another size": lambda full: Structure(
        (
            replace(full.layers[0], heads=full.layers[0].heads[:1], ffn=()),
            replace(full.layers[-1], heads=(), ffn=full.layers[-1].ffn[2:]),
        )
    ),
}


class FamilySuite(Suite):
    """A family knows all of its models' layers, and what it cuts is gone while what is left
    computes what it computed before.

    Attributes:
        members: the families.
        configs: of tiny models of each, by its name, with ``architectures``; see ``models.tiny``.
    """

    members: ClassVar[Iterable[Family]] = ()
    configs: ClassVar[Mapping[str, Sequence[Any]]] = {}

    @classmethod
    def cases(cls) -> dict[str, Sequence[tuple[str, Any]]]:
        return {
            "made": [
                (f"{name} {config.architectures[0]} {i}", (family, config))
                for name, family in cls.named().items()
                for i, config in enumerate(cls.configs[name])
            ],
            "cut": list(CUTS.items()),
        }

    @pytest.fixture
    def family(self, made: tuple[Family, Any]) -> Family:
        return made[0]

    @pytest.fixture
    def model(self, made: tuple[Family, Any]) -> Any:
        return build(made[1])

    def test_structure_is_the_config_s(self, family: Family, model: Any) -> None:
        full = family.structure(model)
        assert family.name == model.config.model_type
        assert len(full.layers) == model.config.num_hidden_layers
        assert family.hidden_size(model) == model.config.hidden_size
        for index, layer in enumerate(full.layers):
            assert layer.source == index
            assert layer.heads == tuple(range(len(layer.heads))) != ()
            assert layer.ffn == tuple(range(len(layer.ffn))) != ()

    def test_every_matrix_of_a_layer_is_claimed_once(self, family: Family, model: Any) -> None:
        for index, layer in enumerate(family.structure(model).layers):
            views = {kind: family.weights(model, index, kind) for kind in ("heads", "ffn")}
            assert all(len(matrix) % len(layer.heads) == 0 for matrix in views["heads"])
            assert {len(matrix) for matrix in views["ffn"]} == {len(layer.ffn)}
            claimed = [m.flatten() for matrices in views.values() for m in matrices]
            block = family.part(model, index, "block")
            there = [p.detach().flatten() for p in block.parameters() if p.dim() > 1]
            assert torch.equal(*(torch.cat(some).sort().values for some in (claimed, there)))

    def test_cutting_nothing_changes_no_bit(self, family: Family, model: Any) -> None:
        whole = family.cut(model, family.structure(model))
        assert torch.equal(logits(whole), logits(model)) and whole is not model

    def test_what_is_cut_is_gone(self, family: Family, model: Any, cut: Cut) -> None:
        """And the model itself stays as it was."""
        before, config, answers = weights(model), model.config.to_dict(), logits(model)
        structure = cut(family.structure(model))
        smaller = family.cut(model, structure)
        left = family.structure(smaller)
        assert (left.head_counts, left.ffn_widths) == (structure.head_counts, structure.ffn_widths)
        assert _count(smaller) < _count(model)
        with torch.no_grad():
            for parameter in smaller.parameters():
                parameter.zero_()
        assert same(weights(model), before) and model.config.to_dict() == config
        assert torch.equal(logits(model), answers)

    def test_what_is_left_computes_what_it_did(self, family: Family, model: Any, cut: Cut) -> None:
        """As the uncut model in which all else contributes nothing."""
        structure = cut(family.structure(model))
        answers, before = logits(family.cut(model, structure)), logits(model)
        with _masked(family, model, structure):
            expected = logits(model)
        torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4)
        assert (expected - before).abs().max() > 1e-3

    def test_a_blank_model_takes_the_weights(self, family: Family, model: Any, cut: Cut) -> None:
        structure = cut(family.structure(model))
        smaller = family.cut(model, structure)
        empty = family.blank(model.config, json.loads(json.dumps(structure.sizes())))
        assert type(empty) is type(model)
        empty.load_state_dict(smaller.state_dict(), strict=True)
        assert _count(empty) == _count(smaller)
        assert torch.equal(logits(empty.eval()), logits(smaller))

    def test_narrowing_by_nothing_changes_no_bit(self, family: Family, model: Any) -> None:
        before, answers = weights(model), logits(model)
        family.narrow(model, range(family.hidden_size(model)))
        assert same(weights(model), before) and torch.equal(logits(model), answers)

    def test_hidden_dimensions_that_go_are_gone(self, family: Family, model: Any) -> None:
        size, before = family.hidden_size(model), _count(model)
        at_the_stream = sum(matrix.numel() for matrix in family.hidden_weights(model))
        kept = range(0, size, 2)
        family.narrow(model, kept)
        assert family.hidden_size(model) == len(kept) and _count(model) < before
        left = sum(matrix.numel() for matrix in family.hidden_weights(model))
        assert left <= at_the_stream / 2 and torch.isfinite(logits(model)).all()

    def test_parts_can_be_put_back(self, family: Family, model: Any) -> None:
        """Also in a sequence of modules, which still counts as many heads and neurons."""
        answers, full = logits(model), family.structure(model)
        for index in range(len(full.layers)):
            for role in ("attention_output", "ffn_output"):
                whole = nn.Sequential(family.part(model, index, role), nn.Identity())
                family.put(model, index, role, whole)
                assert family.part(model, index, role) is whole
        assert family.structure(model) == full and torch.equal(logits(model), answers)

    @pytest.mark.parametrize("title", ["", "every layer another size"])
    def test_the_exported_graph_agrees(
        self, family: Family, model: Any, title: str, tmp_path: Path
    ) -> None:
        """With torch, also on shapes other than those it was traced with."""
        full = family.structure(model)
        smaller = family.cut(model, CUTS[title](full) if title else full)
        to_onnx(smaller, tmp_path / "model.onnx", BATCH)
        shorter = Batch({name: array[:1, :4] for name, array in BATCH.inputs.items()})
        for batch in (BATCH, shorter):
            answers = predict(tmp_path / "model.onnx", [batch.inputs])
            if answers.ndim == 3:
                answers = answers[batch.inputs["attention_mask"] == 1]
            np.testing.assert_allclose(answers, logits(smaller, batch).numpy(), rtol=0, atol=1e-4)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _masked(family: Family, model: nn.Module, structure: Structure) -> Iterator[None]:
    """Inside, what the structure leaves out contributes nothing."""
    kept = {layer.source: layer for layer in structure.layers}

    def only(units: int, indices: tuple[int, ...]) -> Any:
        gate = torch.zeros(units).index_fill(0, torch.tensor(indices, dtype=torch.long), 1)

        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (given[0] * gate.repeat_interleave(given[0].shape[-1] // units), *given[1:])

        return hook

    def skip(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        return (given[0], *output[1:]) if isinstance(output, tuple) else given[0]

    handles = []
    for index, layer in enumerate(family.structure(model).layers):
        if index not in kept:
            block = family.part(model, index, "block")
            handles.append(block.register_forward_hook(skip))
            continue
        for role, units, left in (
            ("attention_output", len(layer.heads), kept[index].heads),
            ("ffn_output", len(layer.ffn), kept[index].ffn),
        ):
            module = family.part(model, index, role)
            handles.append(module.register_forward_pre_hook(only(units, left)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

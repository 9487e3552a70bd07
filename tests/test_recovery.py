"""Recovery: it repeats, it can stop and go on, it learns, and its teacher's outputs are the
teacher's."""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from autocompress.candidate import Candidate
from autocompress.distillation.settings import OBJECTIVES
from autocompress.engine.making import recovery_of
from autocompress.errors import CandidateFailed
from autocompress.families import FAMILIES
from autocompress.interfaces import Batch, Row
from autocompress.structure import Layer, Structure
from autocompress.tasks.data import Columns
from autocompress.tasks.text_classification import TextClassification
from autocompress.tasks.text_classification import load as load_task
from autocompress.techniques import SETTINGS
from autocompress.training import outputs
from autocompress.training.compute import CPU
from autocompress.training.outputs import Teacher, TransferSet
from autocompress.training.recovery import Recovery
from autocompress.training.steps import trunk_steps
from autocompress.training.taps import watch
from autocompress.training.teacher import load_classifier
from tests.tiny_models import FFN, MODELS, VOCABULARY, build

FAMILY = FAMILIES["bert"]
CUT = Structure(
    (
        Layer(0, (0, 2), tuple(range(0, 64, 2))),
        Layer(2, (), tuple(range(40))),
        Layer(3, (1, 3), (5, 6)),
    )
)
HEADLESS_END = Structure((Layer(0, (0, 2), tuple(range(64))), Layer(3, (), (5, 6))))
SMALL_CUT = Structure((Layer(0, (1, 2), tuple(range(FFN))), Layer(2, (0, 3), (1, 4, 5))))
PACED = ("annealed-logits",)
OUTPUTS = ("hidden.1", "hidden.2", "hidden.4", "query", "key", "value")


@pytest.fixture(scope="module")
def task(
    tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> TextClassification:
    """400 real sentences, and 100 unlabelled ones."""
    unlabelled = tmp_path_factory.mktemp("unlabelled") / "lines.txt"
    unlabelled.write_text(
        "".join(f"{a} and {b} are not in the data .\n" for a in range(10) for b in range(10))
    )
    return load_task(
        AutoTokenizer.from_pretrained(tiny_model),
        str(data_file),
        Columns(),
        64,
        None,
        unlabeled=str(unlabelled),
    )


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    """With larger weights, so that its answers differ by more than rounding."""
    classifier = load_classifier(str(tiny_model), None)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
    return classifier


def teacher_of(model: nn.Module, transfer: TransferSet) -> Teacher:
    return Teacher(model, FAMILY, transfer, Path(tempfile.mkdtemp()) / "scratch")


@pytest.fixture(scope="module")
def teacher(model: nn.Module, task: TextClassification) -> Teacher:
    return teacher_of(
        model,
        TransferSet([*task.train.rows, *task.unlabeled], task.train.labels, task.batch, task.loss),
    )


def padded(rows: Sequence[Row]) -> Batch:
    inputs = {"input_ids": np.ones((len(rows), max(row.shape[1] for row in rows)), np.int64)}
    for ids, row in zip(inputs["input_ids"], rows, strict=True):
        ids[: row.shape[1]] = row[0]
    return Batch(inputs | {"attention_mask": (inputs["input_ids"] != 1).astype(np.int64)})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Teacher]:
    """Tiny classifiers of 64 texts of random words, and 16 without labels; each made once."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, VOCABULARY, (1, int(length))) for length in rng.integers(2, 12, 80)]
    transfer = TransferSet(rows, rng.integers(0, 2, 64), padded, TextClassification.loss)

    @cache
    def made(name: str) -> Teacher:
        scratch = tmp_path_factory.mktemp(name) / "scratch"
        return Teacher(build(name), MODELS[name].family, transfer, scratch)

    return made


def candidate(steps: int, **more: Any) -> Candidate:
    return SETTINGS.candidate(
        {"recovery.steps": steps, **{f"recovery.{name}": value for name, value in more.items()}}
    )


def recovery(
    teacher: Teacher, chosen: Candidate, seed: tuple[int, int] = (0, 1), structure: Structure = CUT
) -> Recovery:
    student = teacher.family.cut(teacher.model, structure)
    return recovery_of(student, structure, chosen, teacher, seed)


def weights(one: Recovery) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in one.student.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("unlabeled_share", [0.0, 0.25])
def test_stopping_and_going_on_changes_no_bit(
    small: Callable[[str], Teacher], objective: str, unlabeled_share: float
) -> None:
    """Without leaving memory; ``test_student`` has the rest."""
    chosen = candidate(12, objectives=[objective], unlabeled_share=unlabeled_share)
    at_once, in_parts = (recovery(small("bert"), chosen, structure=SMALL_CUT) for _ in range(2))
    at_once.advance(12)
    in_parts.advance(3)
    assert in_parts.done == 3 and not same(weights(in_parts), weights(at_once))
    in_parts.advance(12)
    assert same(weights(in_parts), weights(at_once))


@pytest.mark.parametrize("steps", [8, 20])
def test_a_run_stopped_before_its_rate_falls_goes_on_as_one_of_other_steps(
    small: Callable[[str], Teacher], steps: int
) -> None:
    """But for objectives that follow how many steps there are."""
    choices: dict[str, Any] = {"objectives": [name for name in OBJECTIVES if name not in PACED]}
    stopped, at_once, other = (
        recovery(small("bert"), candidate(count, **choices), structure=SMALL_CUT)
        for count in (12, steps, steps)
    )
    stopped.advance(trunk_steps(min(12, steps)))
    at_once.advance(steps)
    other.restore(stopped.state())
    other.advance(steps)
    assert other.done == steps and same(weights(other), weights(at_once))
    stopped.advance(12)
    assert not same(weights(stopped), weights(other))


def test_it_ends_at_its_steps(teacher: Teacher) -> None:
    one = recovery(teacher, candidate(4))
    one.advance(100)
    after = weights(one)
    one.advance(200)
    assert one.done == 4 and same(weights(one), after)


def test_students_of_a_search_draw_the_same_batches(teacher: Teacher) -> None:
    chosen = candidate(3, objectives=["logits", "value-relations"])
    trained = []
    for seed in ((0, 1), (0, 2), (1, 1)):
        one = recovery(teacher, chosen, seed)
        one.advance(3)
        trained.append(weights(one))
    assert same(trained[0], trained[1]) and not same(trained[0], trained[2])


@pytest.mark.parametrize("objective", ["random-layers", "adversarial-logits"])
def test_what_objectives_draw_follows_from_the_student(
    small: Callable[[str], Teacher], objective: str
) -> None:
    trained = []
    for seed in ((0, 1), (0, 1), (0, 2)):
        one = recovery(small("bert"), candidate(3, objectives=[objective]), seed, SMALL_CUT)
        one.advance(3)
        trained.append(weights(one))
    assert same(trained[0], trained[1]) and not same(trained[0], trained[2])


def test_shape_of_the_student_stays_and_the_teacher_is_untouched(
    small: Callable[[str], Teacher],
) -> None:
    teacher = small("bert")
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    one = recovery(teacher, candidate(3, objectives=list(OBJECTIVES)), structure=SMALL_CUT)
    one.advance(3)
    left = FAMILY.structure(one.student)
    assert left.head_counts == SMALL_CUT.head_counts and left.ffn_widths == SMALL_CUT.ffn_widths
    assert same(dict(teacher.model.state_dict()), before)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in one.student.modules()
    )


def test_students_learn_the_labels(model: nn.Module, task: TextClassification) -> None:
    rows, labels = task.train.rows[:64], task.train.labels[:64]
    one = recovery(
        teacher_of(model, TransferSet(rows, labels, task.batch, task.loss)),
        candidate(60, hard_label_weight=1.0, learning_rate=1e-3),
    )

    def loss() -> float:
        with torch.inference_mode():
            logits = one.student(**CPU.tensors(task.batch(rows))).logits
        return cross_entropy(logits, torch.from_numpy(labels)).item()

    before = loss()
    one.advance(60)
    assert loss() < 0.5 * before


@pytest.mark.parametrize(
    ("name", "objective"),
    [*(("bert", name) for name in OBJECTIVES), ("gpt2", "attention-maps"), ("llama", "logits")],
)
def test_students_learn_from_the_teacher(
    small: Callable[[str], Teacher], name: str, objective: str
) -> None:
    """The loss of a fixed batch falls, without labels."""
    chosen = candidate(60, objectives=[objective], hard_label_weight=0.0, learning_rate=5e-3)
    one = recovery(small(name), chosen, structure=SMALL_CUT)
    family, depth = one.teacher.family, len(SMALL_CUT.layers)

    def loss() -> float:
        with torch.no_grad(), watch(one.student, family, depth, one.watched) as seen:
            return one._loss(list(range(64)), seen).item()

    before = loss()
    one.advance(60)
    assert 0 < loss() < 0.8 * before


@pytest.mark.parametrize(("weight", "matters"), [(0.0, False), (0.5, True), (1.0, True)])
def test_labels_count_by_their_weight(
    model: nn.Module, task: TextClassification, weight: float, matters: bool
) -> None:
    trained = []
    for labels in (task.train.labels, 1 - task.train.labels):
        one = recovery(
            teacher_of(model, TransferSet(task.train.rows, labels, task.batch, task.loss)),
            candidate(2, hard_label_weight=weight),
        )
        one.advance(2)
        trained.append(weights(one))
    assert same(*trained) != matters


def test_teacher_counts_for_nothing_beside_full_weight_on_labels(teacher: Teacher) -> None:
    trained = []
    for objectives in (["logits"], ["hidden-states"]):
        one = recovery(teacher, candidate(2, hard_label_weight=1.0, objectives=objectives))
        one.advance(2)
        trained.append(weights(one))
    assert same(*trained)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_unlabelled_rows_take_their_share_and_no_labels(teacher: Teacher, share: float) -> None:
    one = recovery(
        teacher, candidate(2, unlabeled_share=share, objectives=["logits", "hidden-states"])
    )
    labelled = len(teacher.transfer.labels)
    drawn = [next(one.batches) for _ in range(20)]
    assert sum(index >= labelled for batch in drawn for index in batch) == 20 * 32 * share
    one.advance(2)
    assert one.done == 2 and all(
        torch.isfinite(tensor).all() for tensor in one.student.state_dict().values()
    )


def test_unlabelled_share_without_unlabelled_text_fails_the_candidate(
    model: nn.Module, task: TextClassification
) -> None:
    bare = teacher_of(model, TransferSet(task.train.rows, task.train.labels, task.batch, task.loss))
    with pytest.raises(
        CandidateFailed,
        match=r"^recovery\.unlabeled_share is more than 0, but there is no unlabelled text",
    ):
        recovery(bare, candidate(2, unlabeled_share=0.5))


def test_a_last_layer_without_heads_can_be_recovered_by_attention(teacher: Teacher) -> None:
    """The attention objectives are zero there, so the labels alone train."""
    trained = []
    for objectives in (
        ["attention-maps"],
        ["value-relations"],
        ["attention-maps", "value-relations"],
    ):
        one = recovery(teacher, candidate(2, objectives=objectives), structure=HEADLESS_END)
        one.advance(2)
        trained.append(weights(one))
    assert same(trained[0], trained[1]) and same(trained[0], trained[2])
    assert not same(trained[0], dict(FAMILY.cut(teacher.model, HEADLESS_END).state_dict()))


def test_attention_alone_without_heads_or_labels_has_nothing_to_learn_but_runs(
    teacher: Teacher,
) -> None:
    one = recovery(
        teacher,
        candidate(2, objectives=["attention-maps"], hard_label_weight=0.0),
        structure=HEADLESS_END,
    )
    one.advance(2)
    assert one.done == 2


def test_a_diverging_run_fails_the_candidate(model: nn.Module, task: TextClassification) -> None:
    broken = FAMILY.cut(model, FAMILY.structure(model))
    teacher = teacher_of(
        broken, TransferSet(task.train.rows, task.train.labels, task.batch, task.loss)
    )
    one = recovery(teacher, candidate(2))
    with torch.no_grad():
        one.student.get_parameter("classifier.bias").fill_(float("nan"))
    with pytest.raises(CandidateFailed, match=r"^the training loss became nan$"):
        one.advance(2)


def asked(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each pass of the teacher from now on."""
    rows: list[int] = []
    forward = type(teacher.model).forward

    def counting(model: nn.Module, **inputs: Tensor) -> Any:
        if model is teacher.model:
            rows.append(len(inputs["input_ids"]))
        return forward(model, **inputs)

    monkeypatch.setattr(type(teacher.model), "forward", counting)
    return rows


EVERY_FEATURE = candidate(6, objectives=["logits", "hidden-states", "value-relations"])


def fresh(small: Callable[[str], Teacher], folder: Path) -> Teacher:
    """One that has not been asked yet."""
    known = small("bert")
    return Teacher(known.model, known.family, known.transfer, folder / "scratch")


def test_the_teacher_is_asked_of_what_is_drawn_when_it_is_drawn_and_once(
    small: Callable[[str], Teacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two students of one search learn from the same batches."""
    teacher = fresh(small, tmp_path)
    passes = asked(teacher, monkeypatch)
    one, other = (recovery(teacher, EVERY_FEATURE, (0, student), SMALL_CUT) for student in (1, 2))
    assert passes == []
    one.advance(2)
    assert passes == [32] * 2
    other.advance(4)
    assert passes == [32] * 4
    one.advance(6)
    assert passes == [32] * 6
    recovery(teacher, candidate(6, objectives=["logits"]), (0, 3), SMALL_CUT).advance(6)
    assert passes == [32] * 6
    recovery(teacher, candidate(1, objectives=["cosine"]), (0, 4), SMALL_CUT).advance(1)
    assert passes == [32] * 7
    recovery(teacher, EVERY_FEATURE, (1, 1), SMALL_CUT).advance(1)
    assert passes == [32] * 8


def test_labels_alone_ask_no_teacher(
    small: Callable[[str], Teacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = fresh(small, tmp_path)
    passes = asked(teacher, monkeypatch)
    recovery(teacher, candidate(10, label_phase=0.7), structure=SMALL_CUT).advance(10)
    assert passes == [32] * 3


@pytest.fixture(params=["room", "no room", "a file of 20 kB", "a disk that is full"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How much of what the teacher says can be kept."""
    if request.param == "no room":
        monkeypatch.setattr(outputs, "MOST_KEPT", 0)
    if request.param == "a disk that is full":
        usage = shutil.disk_usage(".")._replace(free=outputs.LEFT_FREE)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if request.param == "a file of 20 kB":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield request.param
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_student_is_the_same_whether_or_not_outputs_could_be_kept(
    small: Callable[[str], Teacher],
    disk: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = fresh(small, tmp_path)
    passes, students = asked(teacher, monkeypatch), []
    for _ in range(2):
        students.append(recovery(teacher, EVERY_FEATURE, structure=SMALL_CUT))
        students[-1].advance(6)
    again = {"room": 0, "a file of 20 kB": 5}.get(disk, 6)
    assert len(passes) == 6 + again
    alone = recovery(small("bert"), EVERY_FEATURE, structure=SMALL_CUT)
    alone.advance(6)
    assert all(same(weights(alone), weights(student)) for student in students)
    kept = sum(file.stat().st_size for file in teacher.scratch.iterdir())
    assert {"room": kept > 100_000, "a file of 20 kB": kept <= 20_000}.get(disk, kept == 0)


@pytest.mark.parametrize("order", [OUTPUTS, OUTPUTS[:2], ()])
def test_features_are_the_teacher_s_whatever_was_asked_before(
    model: nn.Module, task: TextClassification, order: Sequence[str]
) -> None:
    rows = [*task.train.rows, *task.unlabeled]
    teacher = teacher_of(model, TransferSet(rows, task.train.labels, task.batch, task.loss))
    batch = task.batch([rows[i] for i in (3, 0, len(task.train.rows) - 1, 17, len(rows) - 1)])
    given = CPU.tensors(batch)
    teacher.features(order, given)
    with torch.inference_mode(), watch(model, FAMILY, 4, OUTPUTS) as seen:
        logits = CPU.logits(model, given)
    for _ in range(2):
        features = teacher.features(OUTPUTS, given)
        assert torch.equal(features.logits, logits)
        assert torch.equal(features.mask, given["attention_mask"])
        assert features.tokens.keys() == set(OUTPUTS)
        for name, value in features.tokens.items():
            assert value.dtype == torch.float32 and value.abs().max() > 0.1
            torch.testing.assert_close(value, seen[name].float(), rtol=1e-3, atol=1e-3)


def test_features_that_fp16_cannot_hold_become_its_largest_number(
    small: Callable[[str], Teacher], tmp_path: Path
) -> None:
    known = small("bert")
    large = known.family.cut(known.model, known.structure)
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            if name.endswith("layer.2.output.LayerNorm.bias"):
                parameter[:2] = torch.tensor([1e6, -1e6])
    teacher = Teacher(large, known.family, known.transfer, tmp_path / "scratch")
    given = CPU.tensors(padded(known.transfer.rows[:32]))
    for _ in range(2):
        hidden = teacher.features(["hidden.3"], given).tokens["hidden.3"]
        assert (hidden[..., 0] == 65504).all() and (hidden[..., 1] == -65504).all()
        assert hidden[..., 2:].abs().max() < 100

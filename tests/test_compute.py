"""Where training runs: which device is chosen, in what arithmetic, and that all of it is there."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from autocompress.candidate import Candidate
from autocompress.distillation import objectives
from autocompress.distillation.settings import OBJECTIVES
from autocompress.engine.making import recovery_of
from autocompress.errors import UserError
from autocompress.interfaces import Batch, Features, Lesson, Matching
from autocompress.structure import Layer, Structure
from autocompress.tasks.text_classification import TextClassification
from autocompress.techniques import SETTINGS
from autocompress.training import compute
from autocompress.training.compute import CPU, Compute
from autocompress.training.outputs import Teacher, TransferSet
from tests.test_recovery import padded
from tests.tiny_models import MODELS, VOCABULARY, build, inputs

BF16 = Compute(autocast=torch.bfloat16)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets torch see so many GPUs."""

    def see(count: int, *, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation
        )

    return see


@pytest.mark.parametrize("name", ["gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_an_unknown_device_is_refused(gpus: Any, name: str) -> None:
    gpus(8)
    with pytest.raises(UserError) as caught:
        Compute.choose(name)
    assert str(caught.value) == f"--train-on is {name!r}, allowed is auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_there_is_refused(gpus: Any, name: str, count: int) -> None:
    gpus(count)
    with pytest.raises(UserError) as caught:
        Compute.choose(name)
    assert str(caught.value) == f"--train-on {name}: torch sees {count} GPUs here"


@pytest.mark.parametrize(
    ("name", "count", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_the_device_that_is_chosen(gpus: Any, name: str, count: int, device: str) -> None:
    gpus(count)
    chosen = Compute.choose(name)
    assert (chosen.device, chosen.on_gpu, chosen.tf32) == (device, device != "cpu", False)
    assert Compute.choose(name, tf32=True).tf32


@pytest.mark.parametrize("has_it", [True, False])
def test_bf16_is_on_where_a_gpu_has_it(gpus: Any, has_it: bool) -> None:
    gpus(1, bf16=has_it)
    assert Compute.choose("cuda").autocast == (torch.bfloat16 if has_it else None)


@pytest.mark.parametrize(
    ("machine", "native", "emulated", "has_it"),
    [
        ("x86_64", True, True, True),
        ("x86_64", False, True, False),
        ("AMD64", False, True, False),
        ("aarch64", False, True, True),
        ("aarch64", False, False, False),
    ],
)
def test_bf16_is_on_where_a_cpu_has_it_of_its_own(
    machine: str, native: bool, emulated: bool, has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mkldnn says yes on all of AVX-512, and emulates bf16 where it is not native."""
    mkldnn = torch.ops.mkldnn
    monkeypatch.setattr(mkldnn, "_is_mkldnn_bf16_supported", lambda: emulated, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert Compute.choose("cpu").autocast == (torch.bfloat16 if has_it else None)


def test_without_mkldnn_a_cpu_has_no_fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert Compute.choose("cpu") == CPU == Compute("cpu", None, tf32=False)


def test_products_are_of_the_type_that_was_chosen_and_only_inside() -> None:
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with BF16.math(4):
        assert (a @ a).dtype == torch.bfloat16
        with CPU.math(4):
            inside = a @ a
    assert torch.equal(inside, a @ a) and inside.dtype == torch.float32


@pytest.mark.parametrize(("length", "fused"), [(2, False), (96, False), (97, True), (512, True)])
def test_attention_of_short_texts_on_the_cpu_is_plain_products_inside(
    length: int, fused: bool
) -> None:
    cuda: Any = torch.backends.cuda
    before = cuda.math_sdp_enabled(), cuda.flash_sdp_enabled()
    with CPU.math(length):
        assert (cuda.math_sdp_enabled(), cuda.flash_sdp_enabled()) == (True, fused)
    assert (cuda.math_sdp_enabled(), cuda.flash_sdp_enabled()) == before == (True, True)


def test_long_texts_are_answered_alike_by_either_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding is seen by neither, and gradients are the same."""
    model, given = build("gpt2"), torch.randint(5, VOCABULARY, (3, 120))
    mask = (torch.arange(120) < torch.tensor([[120], [97], [40]])).long()
    answers, gradients = [], []
    for longest in (96, 120):
        monkeypatch.setattr(compute, "LONGEST_PLAIN", longest)
        logits = CPU.logits(model, {"input_ids": given, "attention_mask": mask})
        answers.append(logits)
        gradients.append(torch.autograd.grad(logits.sum(), list(model.parameters())))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


LANGUAGE_MODELS = [name for name, tiny in MODELS.items() if tiny.auto is AutoModelForCausalLM]


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_logits_of_a_vocabulary_are_the_model_s_and_never_rounded_to_bf16(name: str) -> None:
    """As large as those of a trained model, where bf16 is a quarter apart."""
    model, given = build(name), inputs()
    head: Any = model
    with torch.no_grad():
        head.get_output_embeddings().weight.mul_(20)
        exact = model(**given).logits
        torch.testing.assert_close(CPU.logits(model, given), exact, rtol=1e-4, atol=1e-4)
        with BF16.math(7):
            body = head.base_model(**given).last_hidden_state.float()
        logits = BF16.logits(model, given)
        torch.testing.assert_close(logits, head.get_output_embeddings()(body), rtol=1e-5, atol=1e-5)
    assert logits.dtype == torch.float32 and exact.abs().max() > 30
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize("allowed", [True, False])
def test_a_gpu_rounds_to_tf32_only_where_allowed_and_only_inside(allowed: bool) -> None:
    matmul, inside = torch.backends.cuda.matmul, []
    before = matmul.allow_tf32
    matmul.allow_tf32 = not allowed

    def fail() -> None:
        with Compute("cuda", tf32=allowed).math(4):
            inside.append(matmul.allow_tf32)
            raise KeyError

    try:
        with pytest.raises(KeyError):
            fail()
        assert inside == [allowed] and matmul.allow_tf32 == (not allowed)
    finally:
        matmul.allow_tf32 = before


def test_tensors_share_the_memory_of_arrays_on_the_cpu_and_are_moved_elsewhere() -> None:
    """The device ``meta`` stands for any that is not the CPU: it computes shapes alone."""
    batch = Batch({"input_ids": np.arange(6).reshape(2, 3), "attention_mask": np.ones((2, 3), int)})
    here, there = CPU.tensors(batch), Compute("meta").tensors(batch)
    batch.inputs["input_ids"][1, 2] = 99
    assert here["input_ids"].tolist() == [[0, 1, 2], [3, 4, 99]]
    assert here.keys() == there.keys() == batch.inputs.keys()
    assert {(own.device.type, own.dtype, own.shape) for own in there.values()} == {
        ("meta", torch.int64, (2, 3))
    }


READING = [name for name in OBJECTIVES if name != "adversarial-logits"]
"""All but the one that runs the models itself on texts of its own."""


@pytest.mark.parametrize("name", READING)
def test_what_an_objective_makes_is_on_the_device_of_the_lesson(name: str) -> None:
    """On ``meta`` a tensor of another device is an error, as it is on a GPU."""
    far, model = Compute("meta"), build("bert").to("meta")
    matching = Matching(((1, 1), (2, 2), (3, 3)), (0, 1, 2, 3), 8)
    chosen = SETTINGS.candidate({"recovery.steps": 9, "recovery.objectives": [name]})
    lesson = Lesson(chosen, matching, model, model, torch.Generator().manual_seed(0), 9, far)
    objective = objectives()[name](lesson)

    def features() -> Features:
        names = ("hidden.1", "hidden.2", "hidden.3", "query", "key", "value", "last")
        tokens = {own: torch.zeros(4, 7, 32, device="meta") for own in names}
        mask = torch.ones(4, 7, dtype=torch.int64, device="meta")
        return Features(torch.zeros(4, 2, device="meta"), mask, tokens)

    loss = objective.loss(features(), features())
    assert loss.device.type == "meta" and loss.shape == ()
    assert {own.device.type for own in objective.trained()} <= {"meta"}


CUT = Structure((Layer(0, (1, 2), tuple(range(12))), Layer(2, (0, 3), (1, 4, 5))))


def recovered(
    where: Compute, chosen: Candidate, scratch: Path, *stops: int
) -> tuple[Tensor, Tensor]:
    """What a student answers before and after its training, which stops at these steps, where it
    goes on from its state alone."""
    rng, family = np.random.default_rng(0), MODELS["bert"].family
    rows = [rng.integers(5, VOCABULARY, (1, int(length))) for length in rng.integers(2, 9, 64)]
    text = TransferSet(rows, rng.integers(0, 2, 48), padded, TextClassification.loss)
    teacher = Teacher(build("bert"), family, text, scratch, compute=where)
    state: dict[str, Tensor] = {}
    answers = []
    for stop in stops:
        student = family.cut(teacher.model, CUT)
        one = recovery_of(student, CUT, chosen, teacher, (0, 1))
        if state:
            one.restore(state)
        one.advance(stop)
        state = one.state()
        with torch.no_grad():
            answers.append(student(**where.tensors(padded(rows))).logits)
        assert {tensor.device.type for tensor in state.values()} == {"cpu"}
        assert {answers[-1].device.type} == {torch.device(where.device).type}
    return answers[0].cpu(), answers[-1].cpu()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("objective", [*READING, "every one, under int8"])
def test_a_student_of_the_gpu_answers_as_one_of_the_cpu(objective: str, tmp_path: Path) -> None:
    """Stopped half way, in plain fp32. What is drawn is drawn on the CPU, so it is the same."""
    every = objective not in OBJECTIVES
    settings = {
        "recovery.steps": 6,
        "recovery.learning_rate": 1e-3,
        "recovery.objectives": list(READING) if every else [objective],
        "recovery.unlabeled_share": 0.25,
        "quantization.trained": every,
    }
    chosen = SETTINGS.candidate(settings)
    before, here = recovered(CPU, chosen, tmp_path / "cpu", 0, 6)
    _, there = recovered(Compute("cuda"), chosen, tmp_path / "gpu", 0, 3, 6)
    assert (here - there).abs().max() < (0.1 if every else 0.01) * (here - before).abs().max()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("tf32", [False, True])
def test_products_on_the_gpu_are_of_the_type_that_was_chosen(tf32: bool) -> None:
    chosen = Compute.choose("cuda", tf32)
    a = chosen.moved(torch.randn(64, 64))
    with chosen.math(64):
        assert (a @ a).dtype == (chosen.autocast or torch.float32)
    assert chosen.on_gpu and compute.CPU.moved(a).device.type == "cpu"

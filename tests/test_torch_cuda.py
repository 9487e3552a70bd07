"""The torch-cuda device: everything that needs no GPU, and, where one is there, the real thing."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.errors import CandidateFailed, DeviceLost, UserError
from autocompress.hardware import torch_cuda
from autocompress.hardware.agent import FEWEST_PROCESSES, SHARES
from autocompress.hardware.patience import Patience, until
from autocompress.hardware.profile import HardwareProfile, precision_of
from autocompress.hardware.timing import timings
from autocompress.hardware.torch_cuda import TorchCudaDevice

PROFILE = HardwareProfile.load("gpu-cuda")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")


@pytest.mark.parametrize(
    ("scheme", "computed"),
    [
        ("bf16", "bf16"),
        ("fp16", "fp16"),
        ("fp32", "fp32"),
        ("int8-dynamic", "bf16"),
        ("int4-weights", "bf16"),
    ],
)
def test_what_the_gpu_cannot_compute_it_computes_in_its_first_format(
    scheme: str, computed: str
) -> None:
    assert precision_of(scheme, PROFILE) == computed


def test_the_profile_says_which_format_is_first() -> None:
    profile = replace(PROFILE, precisions=("fp16",))
    assert [precision_of(scheme, profile) for scheme in ("fp16", "bf16", "int8-static")] == [
        "fp16"
    ] * 3
    assert (
        precision_of("fp32", profile) == "fp32"
    )  # as the baseline, which is timed in fp32 whatever the profile offers


@needs_no_gpu
def test_without_a_gpu_it_is_refused_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        TorchCudaDevice(PROFILE, [32])
    text = str(caught.value)
    assert text.startswith("hardware profile gpu-cuda: torch-cuda needs an NVIDIA GPU, ")
    assert torch.__version__ in text and "\n" not in text


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [(None, "this torch is built without CUDA"), ("12.8", "no CUDA device is visible")],
)
def test_what_is_missing_is_named(
    cuda: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UserError, match=reason):
        TorchCudaDevice(PROFILE, [32])


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> TorchCudaDevice:
    """A device whose GPU is only claimed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Claim")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=2**30)
    )
    return TorchCudaDevice(PROFILE, [8, 16])


def test_the_fingerprint_names_the_gpu_and_the_versions(there: TorchCudaDevice) -> None:
    assert there.fingerprint["gpu"] == "NVIDIA Claim"
    assert there.fingerprint["torch"] == torch.__version__
    assert {"cpu", "cores", "features", "cuda"} <= there.fingerprint.keys()
    assert there.lengths == (8, 16)
    there.close()


def test_devices_that_compute_in_other_formats_do_not_share_their_answers(
    there: TorchCudaDevice,
) -> None:
    """Of devices that answer alike only one is asked, and bf16 answers otherwise than fp16."""
    other = TorchCudaDevice(replace(PROFILE, name="fp16", precisions=("fp16", "fp32")), [32])
    assert precision_of("int8-dynamic", other.profile) != precision_of(
        "int8-dynamic", there.profile
    )
    assert other.answers_like != there.answers_like
    assert (
        TorchCudaDevice(replace(PROFILE, name="eager", cuda_graphs=False), [32]).answers_like
        == there.answers_like
    )


# --------------------------------------------------------------------------------------------------
# -
# The process that computes


Interpreter = Callable[[str], None]


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interpreter:
    """Puts a shell script in Python's place."""

    def put(script: str) -> None:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return put


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "cat >/dev/null; echo first >&2; echo 'RuntimeError: no kernel image' >&2; exit 3",
            "ended with 3: RuntimeError: no kernel image",
        ),
        ("kill -9 $$", "ended with -9: no message"),
        ("exit 0", "ended with 0: no message"),
        ("cat >/dev/null; echo what is no answer; exit 1", "ended with 1: no message"),
    ],
)
def test_a_process_that_dies_fails_the_candidate(
    script: str, reason: str, interpreter: Interpreter
) -> None:
    interpreter(script)
    with pytest.raises(CandidateFailed) as caught:
        torch_cuda._ask({"action": "time"})
    assert str(caught.value) == f"torch-cuda: the process {reason}"


def test_a_refusal_fails_the_candidate(interpreter: Interpreter) -> None:
    interpreter(
        """cat >/dev/null; echo noise; echo '{"refused": "the device ran out of memory"}'"""
    )
    with pytest.raises(CandidateFailed, match=r"^torch-cuda: the device ran out of memory$"):
        torch_cuda._ask({"action": "time"})


@pytest.mark.parametrize(
    ("left", "error", "end"),
    [(9.0, CandidateFailed, ""), (0.0, DeviceLost, ", and the time is up")],
)
def test_a_process_that_hangs_is_ended(
    left: float,
    error: type[Exception],
    end: str,
    interpreter: Interpreter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interpreter("exec sleep 600")
    monkeypatch.setattr(Patience, "limit_s", lambda self, request: 0.1)
    with (
        until(lambda: left),
        pytest.raises(error, match=f"^torch-cuda: no answer within 0 s{end}$"),
    ):
        torch_cuda._ask({"action": "time"})


def test_the_last_line_is_the_answer(interpreter: Interpreter, tmp_path: Path) -> None:
    interpreter(
        f"""cat >{tmp_path}/request; echo "$@" >{tmp_path}/arguments; echo noise; echo '{{"wall_ms": 1}}'"""  # noqa: E501
    )
    assert torch_cuda._ask({"action": "time", "lengths": (1, 2)}) == {"wall_ms": 1}
    assert json.loads((tmp_path / "request").read_text()) == {"action": "time", "lengths": [1, 2]}
    assert (tmp_path / "arguments").read_text().split() == [
        "-m",
        "autocompress.hardware.torch_cuda",
    ]


def test_what_is_asked_is_what_the_profile_says(
    there: TorchCudaDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        requests.append(request)
        rounds = np.tile([4.0, 2.0, 1.0][: len(request["models"])], (30, 1)).tolist()
        nothing = [None] * len(request["models"])
        return {
            "wall_ms": [rounds],
            "cpu_ms": [rounds],
            "clock": "wall",
            "energy_mj": nothing,
            "memory_bytes": [5, 6, 7],
        }

    monkeypatch.setattr(torch_cuda, "_ask", answer)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, scheme in zip(folders, ("fp32", "int8-dynamic", "fp32"), strict=True):
        describe(folder, scheme)
    baseline, [b, c] = there.time(folders[0], folders[1:], final=True)
    assert (
        requests
        == [
            {
                "action": "time",
                "models": [str(folder) for folder in folders],
                "precisions": ["fp32", "bf16", "fp32"],
                "lengths": (8, 16),
                "batch_size": 1,
                "cuda_graphs": True,
                "statistic": PROFILE.statistic,
                "confidence": 0.95,
                "target_precision": 0.02,
                "seconds": 2 * PROFILE.final_seconds / SHARES,
            }
        ]
        * FEWEST_PROCESSES
    )
    assert [timing.latency_ms.value for timing in (baseline, b, c)] == [4.0, 2.0, 1.0]
    assert [timing.speedup for timing in (baseline, b, c)] == [1.0, 2.0, 4.0]
    assert [timing.precision for timing in (baseline, b, c)] == ["fp32", "bf16", "fp32"]
    assert [timing.memory_bytes for timing in (baseline, b, c)] == [5, 6, 7]
    assert all(timing.cpu_ms is None and not timing.disturbed for timing in (baseline, b, c))


def test_a_model_alone_is_timed_in_its_own_format(
    there: TorchCudaDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As ``autocompress measure`` does with a model of the front."""
    asked: list[list[str]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["precisions"])
        rounds = [[[1.0]] * 30]
        return {
            "wall_ms": rounds,
            "cpu_ms": rounds,
            "clock": "wall",
            "energy_mj": [None],
            "memory_bytes": [1],
        }

    monkeypatch.setattr(torch_cuda, "_ask", answer)
    for scheme in ("fp32", "bf16", "int8-dynamic"):
        describe(tmp_path, scheme)
        there.time(tmp_path, [], final=True)
    assert asked[::FEWEST_PROCESSES] == [["fp32"], ["bf16"], ["bf16"]]


def test_the_uncut_model_is_timed_in_fp32_alone_and_beside_others(
    there: TorchCudaDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the profile offers no fp32 for candidates: latencies and speedups are against the
    same baseline, and what is timed in fp32 is scored in fp32."""
    asked: list[list[str]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["precisions"])
        nothing, rounds = [None] * len(request["models"]), [[[1.0] * len(request["models"])] * 30]
        return {
            "wall_ms": rounds,
            "cpu_ms": rounds,
            "clock": "wall",
            "energy_mj": nothing,
            "memory_bytes": nothing,
        }

    monkeypatch.setattr(torch_cuda, "_ask", answer)
    there.profile = replace(PROFILE, precisions=("bf16",))
    describe(tmp_path, "fp32")
    there.time(tmp_path, [], final=False)
    there.time(tmp_path, [tmp_path], final=False)
    assert asked[::FEWEST_PROCESSES] == [["fp32"], ["fp32", "fp32"]]


def test_models_that_do_not_fit_the_gpu_together_are_timed_in_groups(
    there: TorchCudaDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append([Path(model).name for model in request["models"]])
        nothing, rounds = [None] * len(request["models"]), [[[1.0] * len(request["models"])] * 30]
        return {
            "wall_ms": rounds,
            "cpu_ms": rounds,
            "clock": "wall",
            "energy_mj": nothing,
            "memory_bytes": nothing,
        }

    monkeypatch.setattr(torch_cuda, "_ask", answer)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=12)
    )
    folders = [describe(tmp_path / name, "fp32") for name in "abc"]
    assert len(there.time(folders[0], folders[1:], final=False)[1]) == 2
    assert asked[::FEWEST_PROCESSES] == [["a", "b"], ["a", "c"]]


def describe(folder: Path, scheme: str) -> Path:
    """An exported folder as far as the device reads it before it is asked."""
    folder.mkdir(exist_ok=True)
    (folder / "autocompress.json").write_text(json.dumps({"quantization": {"scheme": scheme}}))
    (folder / "model.onnx").write_bytes(b"1")
    return folder


def request(models: int) -> dict[str, Any]:
    return {
        "models": [f"model-{i}" for i in range(models)],
        "precisions": ["fp32", "bf16", "bf16"][:models],
        "lengths": [8, 16],
        "statistic": "median",
        "confidence": 0.95,
        "target_precision": 0.02,
        "seconds": 0.0,
    }


@pytest.fixture
def paces(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Milliseconds of each model; filled by tests. Loading takes as many bytes as the name has
    letters."""
    milliseconds: dict[str, float] = {}

    def runner(
        folder: str, precision: str, asked: Mapping[str, Any]
    ) -> tuple[Callable[[], None], int]:
        def run() -> None: ...

        run.__name__ = folder
        return run, len(folder)

    monkeypatch.setattr(torch_cuda, "_runner", runner)
    monkeypatch.setattr(torch_cuda, "_block", lambda run, lengths: milliseconds[run.__name__])
    return milliseconds


def test_the_answer_is_what_timings_reads(paces: dict[str, float]) -> None:
    paces |= {"model-0": 6.0, "model-1": 2.0, "model-2": 12.0}
    answer = json.loads(json.dumps(torch_cuda._time(request(3))))
    assert np.array(answer["wall_ms"]).shape == (1, 30, 3)  # one process, rounds, models
    baseline, fast, slow = timings(answer, PROFILE, ["fp32", "bf16", "bf16"])
    assert [timing.latency_ms.value for timing in (baseline, fast, slow)] == [6.0, 2.0, 12.0]
    assert [timing.speedup for timing in (baseline, fast, slow)] == [1.0, 3.0, 0.5]
    assert fast.latency_ms.n == 30 and fast.latency_ms.basis == "measured"
    assert (fast.wall_ms, fast.cpu_ms, fast.energy_mj, fast.memory_bytes, fast.disturbed) == (
        2.0,
        None,
        None,
        7,
        False,
    )


def test_a_model_alone_has_a_latency(paces: dict[str, float]) -> None:
    paces["model-0"] = 6.0
    [timing] = timings(torch_cuda._time(request(1)), PROFILE, ["fp32"])
    assert timing.latency_ms.value == 6.0


def test_timing_goes_on_in_fresh_processes_until_it_is_precise_or_out_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def is_precise(processes: Any, *_: object) -> bool:
        looks.append(len(processes))
        return len(looks) == 3

    def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
        assert asked["seconds"] == seconds / SHARES
        return {"wall_ms": [[[6.0, 2.0]]], "cpu_ms": [[[6.0, 2.0]]], "memory_bytes": [5, 6]}

    monkeypatch.setattr(torch_cuda, "is_precise", is_precise)
    monkeypatch.setattr(torch_cuda, "_ask", answer)
    for seconds, processes in ((60.0, 5), (0.0, 3)):
        looks.clear()
        timed = torch_cuda._timed_in_processes(request(2) | {"seconds": seconds})
        assert timed["wall_ms"] == timed["cpu_ms"] == [[[6.0, 2.0]]] * processes
        assert timed["memory_bytes"] == [5, 6]


def test_the_process_computes_fp32_in_fp32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the environment has TF32 on."""

    def asked(_: object) -> dict[str, Any]:
        return {
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        }

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    monkeypatch.setattr(torch_cuda, "_time", asked)
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        assert served('{"action": "time"}', monkeypatch, capsys) == {"tf32": [False, False]}
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def served(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    torch_cuda._serve()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the device ran out of memory"),
        (UserError("model cannot be loaded"), "model cannot be loaded"),
    ],
)
def test_the_process_refuses_what_it_cannot_do(
    error: Exception,
    refused: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(torch_cuda, "_time", fail)
    assert served('{"action": "time"}', monkeypatch, capsys) == {"refused": refused}


def test_the_process_answers_without_gradients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        torch_cuda,
        "_score",
        lambda asked: {"grad": torch.is_grad_enabled(), "asked": asked["count"]},
    )
    assert served('{"action": "score", "count": 3}', monkeypatch, capsys) == {
        "grad": False,
        "asked": 3,
    }


def test_a_folder_that_cannot_be_loaded_is_refused_by_the_real_process(tmp_path: Path) -> None:
    with pytest.raises(CandidateFailed, match=r"^torch-cuda: .*nowhere cannot be loaded"):
        torch_cuda._ask(
            {"action": "score", "models": [str(tmp_path / "nowhere")], "precisions": ["fp32"]}
        )

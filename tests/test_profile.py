from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from autocompress import resources
from autocompress.errors import UserError
from autocompress.hardware.profile import RUNTIMES, HardwareProfile, Peaks

PROFILE: dict[str, Any] = {
    "description": "mine",
    "class": "cpu",
    "runtime": "onnxruntime-cpu",
    "threads": 2,
    "batch_size": 8,
    "sequence_length": 64,
}
BOARD = PROFILE | {"class": "edge", "location": "ssh://pi@board"}
CUDA = {key: value for key, value in PROFILE.items() if key != "threads"} | {
    "class": "gpu",
    "runtime": "torch-cuda",
}
PEAKS = {
    "gops": {"fp32": 10.0, "int8-dynamic": 40.0},
    "memory_gb_per_s": 12.5,
    "overhead_us": 3,
    "efficiency": 0.5,
}
DATASHEET = PROFILE | {
    "basis": "datasheet",
    "source": "its datasheet",
    "date": "2026-01-31",
    "peaks": PEAKS,
}
EVERY_KEY: dict[str, Any] = BOARD | {
    "python": "/opt/python",
    "ssh_config": "my.config",
    "precisions": ["fp32", "int8-static"],
    "prompt_length": 16,
    "context_length": 32,
    "generated_tokens": 8,
    "phase": "prefill",
    "memory_limit_mb": 100,
    "regime": "cold",
    "statistic": "mean",
    "confidence": 0.9,
    "target_precision": 0.03,
    "trial_seconds": 1,
    "final_seconds": 3,
    "source": "me",
    "date": "today",
    "fingerprint": {"cpu": "a cpu", "cores": 4, "features": ["asimd"]},
}


def read(values: dict[str, Any], **changes: Any) -> HardwareProfile:
    """From the values as changed; None takes a key away."""
    changed = {key: value for key, value in (values | changes).items() if value is not None}
    return HardwareProfile.from_mapping("board", changed, "board.toml")


def test_one_thread() -> None:
    profile = HardwareProfile.load("cpu-1-thread")
    assert (profile.name, profile.device_class, profile.runtime) == (
        "cpu-1-thread",
        "cpu",
        "onnxruntime-cpu",
    )
    assert (
        profile.threads,
        profile.batch_size,
        profile.sequence_length,
    ) == (1, 1, 32)
    assert (profile.location, profile.statistic, profile.confidence, profile.estimated) == (
        "local",
        "p10",
        0.95,
        False,
    )


def test_all_cores() -> None:
    assert HardwareProfile.load("cpu-all-cores").threads == 0


@pytest.mark.parametrize("name", resources.names("hw_profiles"))
def test_shipped_profiles(name: str) -> None:
    profile = HardwareProfile.load(name)
    assert profile.name == name
    described = json.loads(json.dumps(profile.as_dict()))
    assert described.pop("name") == name
    assert HardwareProfile.from_mapping(name, described) == profile
    assert name.startswith(profile.device_class)
    assert profile.estimated == ("estimate" in profile.description) == (profile.peaks is not None)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(
        'description = "mine"\nclass = "cpu"\nruntime = "onnxruntime-cpu"\nthreads = 2\nbatch_size = 8\nsequence_length = 64\n'  # noqa: E501
        "final_seconds = 3\n",
        encoding="utf-8",
    )
    profile = HardwareProfile.load(str(path))
    assert profile == HardwareProfile(
        "board", "mine", "cpu", "onnxruntime-cpu", 8, 64, threads=2, final_seconds=3.0
    )
    assert profile.precisions == (
        "fp32",
        "int8-dynamic",
        "int8-static",
        "int8-weights",
        "int4-weights",
    )
    assert (profile.target_precision, profile.trial_seconds, profile.confidence) == (
        0.02,
        2.0,
        0.95,
    )


def test_every_key_comes_back() -> None:
    profile = read(EVERY_KEY)
    assert {key: value for key, value in profile.as_dict().items() if key in EVERY_KEY} == EVERY_KEY
    assert profile.as_dict().keys() - EVERY_KEY.keys() == {"name", "cuda_graphs", "basis", "peaks"}
    assert (
        read({key: value for key, value in profile.as_dict().items() if key != "name"}) == profile
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_by_default_the_number_formats_are_those_of_the_runtime(runtime: str) -> None:
    values = PROFILE if runtime == "onnxruntime-cpu" else CUDA | {"runtime": runtime}
    assert read(values).precisions == RUNTIMES[runtime]
    assert read(values, precisions=["fp16", "fp32"]).precisions == ("fp16", "fp32")


def test_a_datasheet() -> None:
    profile = read(DATASHEET)
    assert profile.estimated
    assert profile.peaks == Peaks({"fp32": 10.0, "int8-dynamic": 40.0}, 12.5, 3, 0.5)
    assert profile.as_dict()["peaks"] == PEAKS


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")


def test_a_profile_extends_another_by_path_or_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, base='extends = "cpu-all-cores"\ndescription = "base"\nbatch_size = 4\n')
    write(tmp_path / "sub", mine='extends = "../base.toml"\nbatch_size = 7\nstatistic = "mean"\n')
    profile = HardwareProfile.load(str(tmp_path / "sub" / "mine.toml"))
    assert profile == HardwareProfile(
        "mine", "base", "cpu", "onnxruntime-cpu", 7, 32, threads=0, statistic="mean"
    )


def test_profiles_that_extend_each_other(tmp_path: Path) -> None:
    write(
        tmp_path,
        first='extends = "second.toml"\n',
        second='extends = "third.toml"\n',
        third='extends = "second.toml"\n',
    )
    message = (
        f"{tmp_path / 'second.toml'}: profiles extend each other in a loop: second.toml -> "
        f"third.toml -> second.toml"
    )
    with pytest.raises(UserError, match=re.escape(message) + "$"):
        HardwareProfile.load(str(tmp_path / "first.toml"))
    write(tmp_path, alone='extends = "alone.toml"\n')
    with pytest.raises(UserError, match=re.escape("in a loop: alone.toml -> alone.toml") + "$"):
        HardwareProfile.load(str(tmp_path / "alone.toml"))


def test_a_profile_that_extends_nothing_there_is(tmp_path: Path) -> None:
    write(
        tmp_path, path='extends = "no.toml"\n', name='extends = "cpu-7"\n', number="extends = 7\n"
    )
    for name, message in (
        ("path", f"hardware profile file {tmp_path / 'no.toml'} does not exist"),
        ("name", "unknown hardware profile 'cpu-7': give a path to a .toml file or one of "),
        (
            "number",
            f"{tmp_path / 'number.toml'}: extends is 7, it must be a profile's name or path",
        ),
    ):
        with pytest.raises(UserError, match="^" + re.escape(message)):
            HardwareProfile.load(str(tmp_path / f"{name}.toml"))


NAMES = "fp32, fp16, bf16, int8-dynamic, int8-static, int8-weights, int4-weights"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cores", 4, "board.toml: unknown key 'cores'; known are description, class, runtime, "),
        ("name", "board", "board.toml: unknown key 'name'"),
        ("device_class", "cpu", "board.toml: unknown key 'device_class'; did you mean class?"),
        ("class", None, "board.toml: missing key 'class'"),
        ("runtime", None, "board.toml: missing key 'runtime'"),
        ("batch_size", None, "board.toml: missing key 'batch_size'"),
        ("sequence_length", None, "board.toml: missing key 'sequence_length'"),
        (
            "threads",
            "2",
            "hardware profile board: threads is '2', allowed is a whole number from 0",
        ),
        (
            "threads",
            2.0,
            "hardware profile board: threads is 2.0, allowed is a whole number from 0",
        ),
        (
            "threads",
            True,
            "hardware profile board: threads is True, allowed is a whole number from 0",
        ),
        (
            "final_seconds",
            True,
            "hardware profile board: final_seconds is True, allowed is seconds from 0.1 to 3600",
        ),
        (
            "final_seconds",
            "3",
            "hardware profile board: final_seconds is '3', allowed is seconds from 0.1 to 3600",
        ),
        (
            "memory_limit_mb",
            "a lot",
            "hardware profile board: memory_limit_mb is 'a lot', allowed is megabytes more than 0",
        ),
        ("description", 3, "hardware profile board: description is 3, allowed is text"),
        ("class", 3, "hardware profile board: class is 3, allowed is one of cpu, gpu, edge"),
        ("cuda_graphs", 1, "hardware profile board: cuda_graphs is 1, allowed is true or false"),
        (
            "sequence_length",
            64.0,
            "hardware profile board: sequence_length is 64.0, allowed is a whole number from 1",
        ),
        (
            "sequence_length",
            True,
            "hardware profile board: sequence_length is True, allowed is a whole number from 1",
        ),
        (
            "precisions",
            "fp32",
            "hardware profile board: precisions is 'fp32', allowed is a list of one or more of ",
        ),
        (
            "precisions",
            [32],
            "hardware profile board: precisions is [32], allowed is a list of one or more of ",
        ),
        (
            "fingerprint",
            "a cpu",
            "hardware profile board: fingerprint is 'a cpu', allowed is a table of system, cpu",
        ),
        (
            "peaks",
            10,
            "hardware profile board: peaks is 10, allowed is a table of gops, memory_gb_per_s",
        ),
        (
            "class",
            "tpu",
            "hardware profile board: class is 'tpu', allowed is one of cpu, gpu, edge",
        ),
        (
            "threads",
            -1,
            "hardware profile board: threads is -1, allowed is a whole number from 0 (all cores) "
            "to 1024",
        ),
        ("threads", 1025, "hardware profile board: threads is 1025"),
        (
            "batch_size",
            0,
            "hardware profile board: batch_size is 0, allowed is a whole number from 1 to 4096",
        ),
        ("batch_size", 4097, "hardware profile board: batch_size is 4097"),
        (
            "sequence_length",
            0,
            'hardware profile board: sequence_length is 0, allowed is a whole number from 1 to 100000, or "task"',  # noqa: E501
        ),
        ("sequence_length", "long", "hardware profile board: sequence_length is 'long'"),
        (
            "target_precision",
            0.0,
            "hardware profile board: target_precision is 0.0, allowed is a share from 0.001 to 0.5",
        ),
        ("target_precision", float("nan"), "hardware profile board: target_precision is nan"),
        ("trial_seconds", 601, "hardware profile board: trial_seconds is 601"),
        (
            "final_seconds",
            0,
            "hardware profile board: final_seconds is 0, allowed is seconds from 0.1 to 3600",
        ),
        (
            "memory_limit_mb",
            0,
            "hardware profile board: memory_limit_mb is 0, allowed is megabytes more than 0",
        ),
        (
            "statistic",
            "max",
            "hardware profile board: statistic is 'max', allowed is one of median, mean, p10",
        ),
        (
            "confidence",
            95,
            "hardware profile board: confidence is 95, allowed is a share from 0.5 to 0.999",
        ),
        ("confidence", 0.4, "hardware profile board: confidence is 0.4"),
        (
            "basis",
            "guess",
            "hardware profile board: basis is 'guess', allowed is one of measured, datasheet",
        ),
        (
            "location",
            "pi@board",
            "hardware profile board: location is 'pi@board', allowed is local, "
            "ssh://[user@]host[:port] or cmd:",
        ),
        (
            "precisions",
            ["fp32", "int3"],
            "hardware profile board: precisions is ['fp32', 'int3'], allowed is a list of one or "
            f"more of {NAMES}",
        ),
        (
            "precisions",
            ["fp32", "fp32"],
            "hardware profile board: precisions is ['fp32', 'fp32'], allowed is",
        ),
        (
            "runtime",
            "tensorrt",
            "hardware profile board: runtime is 'tensorrt', allowed is one of onnxruntime-cpu, "
            "onnxruntime-cuda, torch-cuda",
        ),
    ],
)
def test_mistakes(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        read(PROFILE, **{key: value})


def test_the_memory_of_an_estimate_is_limited_whatever_the_runtime() -> None:
    changes = {
        "class": "edge",
        "runtime": "onnxruntime-cuda",
        "threads": None,
        "memory_limit_mb": 100,
    }
    assert read(DATASHEET, **changes).memory_limit_mb == 100


def test_an_empty_list_of_number_formats_is_refused() -> None:
    """It is no way to ask for the runtime's own."""
    with pytest.raises(
        UserError,
        match=re.escape(
            "hardware profile board: precisions is [], allowed is a list of one or more of fp32, "
        ),
    ):
        read(PROFILE, precisions=[])


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (PROFILE, {"class": "gpu"}, "class is gpu, but the runtime is onnxruntime-cpu"),
        (CUDA, {"class": "cpu"}, "class is cpu, but the runtime is torch-cuda"),
        (
            CUDA,
            {"class": "cpu", "runtime": "onnxruntime-cuda"},
            "class is cpu, but the runtime is onnxruntime-cuda",
        ),
        (CUDA, {"threads": 2}, "threads mean nothing to a CUDA runtime; leave them out"),
        (
            CUDA,
            {"threads": 0, "runtime": "onnxruntime-cuda"},
            "threads mean nothing to a CUDA runtime; leave them out",
        ),
        (PROFILE, {"cuda_graphs": True}, "cuda_graphs are of torch-cuda only"),
        (CUDA, {"regime": "cold"}, "regime = cold is of onnxruntime-cpu only"),
        (
            CUDA,
            {"cuda_graphs": True, "runtime": "onnxruntime-cuda"},
            "cuda_graphs are of torch-cuda only",
        ),
        (
            CUDA,
            {"class": "edge", "location": "ssh://board"},
            "torch-cuda runs on this machine only",
        ),
        (
            CUDA,
            {"precisions": ["fp32", "int8-dynamic"]},
            "torch-cuda computes in fp32, fp16 and bf16 only",
        ),
        (
            BOARD,
            {"threads": 0},
            "threads is 0 (all cores of this machine), but the device is another; give their "
            "number",
        ),
        (PROFILE, {"python": "/opt/python"}, "python is for a device that is not local"),
        (
            PROFILE,
            {"ssh_config": "my.config"},
            "ssh_config is for a location that begins with ssh://",
        ),
        (
            BOARD,
            {"location": "cmd:adb shell", "ssh_config": "c"},
            "ssh_config is for a location that begins with ssh://",
        ),
        (
            DATASHEET,
            {"class": "edge", "location": "ssh://board"},
            "a datasheet profile is of no connected device; leave out the loc",
        ),
        (DATASHEET, {"peaks": None}, "datasheet needs peaks, source and date"),
        (DATASHEET, {"source": None}, "datasheet needs peaks, source and date"),
        (DATASHEET, {"date": None}, "datasheet needs peaks, source and date"),
        (DATASHEET, {"basis": None}, "peaks are for basis = datasheet only"),
        (
            DATASHEET,
            {"fingerprint": {"cpu": "a cpu"}},
            "a fingerprint is of a measured device, the basis is datasheet",
        ),
        (
            DATASHEET,
            {"threads": 0},
            "threads is 0 (all cores of this machine), but a datasheet is of another device",
        ),
        (DATASHEET, {"regime": "cold"}, "regime is of timings, the basis is datasheet"),
        (DATASHEET, {"statistic": "median"}, "statistic is of timings, the basis is datasheet"),
        (DATASHEET, {"confidence": 0.9}, "confidence is of timings, the basis is datasheet"),
        (
            DATASHEET,
            {"target_precision": 0.1},
            "target_precision is of timings, the basis is datasheet",
        ),
        (DATASHEET, {"trial_seconds": 1.0}, "trial_seconds is of timings, the basis is datasheet"),
        (DATASHEET, {"final_seconds": 1.0}, "final_seconds is of timings, the basis is datasheet"),
        (
            DATASHEET,
            {"class": "gpu", "runtime": "torch-cuda", "cuda_graphs": True, "threads": None},
            "cuda_graphs is of timings, the basis is datasheet",
        ),
        (
            CUDA,
            {"runtime": "onnxruntime-cuda", "memory_limit_mb": 100},
            "memory_limit_mb cannot be checked under onnxruntime-cuda",
        ),
        (
            PROFILE,
            {"fingerprint": {"cpu": date(2026, 1, 1)}},
            "fingerprint.cpu is datetime.date(2026, 1, 1), allowed is text, a ",
        ),
        (
            PROFILE,
            {"fingerprint": {"features": [1]}},
            "fingerprint.features is [1], allowed is text, a number or a list of text",
        ),
    ],
)
def test_keys_that_contradict_each_other(
    values: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match="^" + re.escape(f"hardware profile board: {message}")):
        read(values, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gops": {}}, "gops names no fp32"),
        ({"gops": {"fp32": 10.0, "int3": 20.0}}, f"gops names 'int3', known are {NAMES}"),
        ({"gops": {"fp32": 0.0}}, "gops.fp32 is 0.0, allowed is a number more than 0"),
        ({"gops": {"fp32": True}}, "gops.fp32 is True, allowed is a number more than 0"),
        ({"gops": 10.0}, "gops is 10.0, allowed is a table of fp32, fp16"),
        ({"memory_gb_per_s": -1.0}, "memory_gb_per_s is -1.0, allowed is a number more than 0"),
        ({"overhead_us": float("inf")}, "overhead_us is inf, allowed is a number more than 0"),
        ({"efficiency": 1.5}, "efficiency is 1.5, allowed is a share more than 0 and at most 1"),
        ({"efficiency": None}, "missing key 'efficiency'"),
        (
            {"watts": 5},
            "unknown key 'watts'; known are gops, memory_gb_per_s, overhead_us, efficiency",
        ),
    ],
)
def test_mistakes_in_the_peaks(changes: dict[str, Any], message: str) -> None:
    peaks = {key: value for key, value in (PEAKS | changes).items() if value is not None}
    with pytest.raises(UserError, match="^" + re.escape(f"board.toml: peaks: {message}")):
        read(DATASHEET, peaks=peaks)

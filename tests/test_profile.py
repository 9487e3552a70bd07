from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from autocompress import resources
from autocompress.errors import UserError
from autocompress.hardware.profile import HardwareProfile

PROFILE = {"description": "mine", "runtime": "onnxruntime-cpu", "threads": 2, "batch_size": 8, "sequence_length": 64}


def test_one_thread() -> None:
    profile = HardwareProfile.load("cpu-1-thread")
    assert (profile.name, profile.runtime) == ("cpu-1-thread", "onnxruntime-cpu")
    assert (profile.threads, profile.intra_op_threads, profile.batch_size, profile.sequence_length) == (1, 1, 1, 32)


def test_all_cores() -> None:
    profile = HardwareProfile.load("cpu-all-cores")
    assert (profile.threads, profile.intra_op_threads) == (0, os.cpu_count())


@pytest.mark.parametrize("name", resources.names("hw_profiles"))
def test_shipped_profiles(name: str) -> None:
    profile = HardwareProfile.load(name)
    assert profile.name == name
    assert HardwareProfile(**profile.as_dict()) == profile


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(
        'description = "mine"\nruntime = "onnxruntime-cpu"\nthreads = 2\nbatch_size = 8\nsequence_length = 64\nfinal_seconds = 3\n',
        encoding="utf-8",
    )
    profile = HardwareProfile.load(str(path))
    assert profile == HardwareProfile("board", "mine", "onnxruntime-cpu", 2, 8, 64, 0.02, 2.0, 3.0)
    assert profile.intra_op_threads == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cores", 4, "board.toml: unknown key 'cores'; known are description, runtime, threads, "),
        ("name", "board", "board.toml: unknown key 'name'"),
        ("threads", None, "board.toml: missing key 'threads'"),
        ("threads", "2", "board.toml: threads is '2', it must be of type int"),
        ("threads", 2.0, "board.toml: threads is 2.0, it must be of type int"),
        ("threads", True, "board.toml: threads is True, it must be of type int"),
        ("final_seconds", True, "board.toml: final_seconds is True, it must be of type float"),
        ("description", 3, "board.toml: description is 3, it must be of type str"),
        ("threads", -1, "hardware profile board: threads is -1, allowed is a whole number from 0 (all cores) to 1024"),
        ("threads", 1025, "hardware profile board: threads is 1025"),
        ("batch_size", 0, "hardware profile board: batch_size is 0"),
        ("sequence_length", 0, "hardware profile board: sequence_length is 0"),
        ("target_precision", 0.0, "hardware profile board: target_precision is 0.0, allowed is a share from 0.001 to 0.5"),
        ("target_precision", float("nan"), "hardware profile board: target_precision is nan"),
        ("trial_seconds", 601, "hardware profile board: trial_seconds is 601"),
        ("runtime", "tensorrt", "hardware profile board: runtime is 'tensorrt', allowed is onnxruntime-cpu"),
    ],
)
def test_mistakes(key: str, value: object, message: str) -> None:
    changed = {name: item for name, item in {**PROFILE, key: value}.items() if item is not None}
    with pytest.raises(UserError, match="^" + re.escape(message)):
        HardwareProfile.from_mapping("board", changed, "board.toml")

"""onnxruntime reports to nobody from a process of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autocompress.hardware.host import LocalHost, ask

THROUGH_THE_DOOR = """
import json, os, sys
used = []
sys.addaudithook(lambda event, _: used.append(event) if event.startswith("socket.") else None)
from autocompress.graphs.runtime import predict
import numpy as np
answer = predict(sys.argv[1], [{"input_ids": np.array([[1, 2]])}]).tolist()
open_files = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
used += [to for to in map(os.path.realpath, open_files) if "socket" in to]
print(json.dumps([answer, used, os.environ.get("ORT_DISABLE_TELEMETRY")]))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty home of a user who never heard of telemetry."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A graph that gives back what it is given."""
    given, back = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"])
        for name in ("input_ids", "back")
    )
    node = helper.make_node("Identity", ["input_ids"], ["back"])
    graph = helper.make_graph([node], "echo", [given], [back])
    path = tmp_path / "echo.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.mark.parametrize(("own", "there"), [(None, "1"), ("true", "true")])
def test_the_door_reports_to_nobody(
    own: str | None, there: str, home: Path, echo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves a value of the user's own."""
    if own:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", own)
    command = [sys.executable, "-c", THROUGH_THE_DOOR, str(echo)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[[1, 2]], [], there]
    assert list(home.iterdir()) == []


def test_the_agent_reports_to_nobody(home: Path, echo: Path) -> None:
    assert "ORT_DISABLE_TELEMETRY" not in os.environ
    request = {"action": "score", "runtime": "onnxruntime-cpu", "threads": 1}
    answer = ask(LocalHost(), request, [echo], [{"input_ids": np.array([[1, 2]])}])
    assert answer["npy"]
    assert list(home.iterdir()) == []

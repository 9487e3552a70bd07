"""Where the agent runs: this machine in a fresh process, or a board; and how its answers are
checked."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.cores import reserved
from autocompress.errors import CandidateFailed
from autocompress.files import sha256

AGENT = Path(__file__).with_name("agent.py")
"""The one file that a device needs beside Python, numpy and onnxruntime."""
AGENT_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Weights in huge pages, where the system has them: with small ones a process is some per cent
faster or slower than the next."""


class Host(Protocol):
    """A place that the agent runs on."""

    @property
    def location(self) -> str:
        """As in a hardware profile."""
        ...

    def place(self, file: Path, name: str) -> str:
        """Make a file readable there; files of equal name are equal and are sent once.

        Returns:
            Its path on the device.

        Raises:
            CandidateFailed: the connection was lost, also when tried again.
        """
        ...

    def run_agent(self, request: str) -> str:
        """Standard output of the agent, given the request on standard input.

        Raises:
            CandidateFailed: the connection was lost, also when tried again, or the process died.
        """
        ...

    def close(self) -> None:
        """Remove what was placed."""
        ...


class LocalHost:
    """This machine; always a fresh process, since one that trains runs models a fifth slower."""

    location = "local"

    def place(self, file: Path, name: str) -> str:
        return str(file.resolve())

    def run_agent(self, request: str) -> str:
        own = {
            name: f"{os.environ[name]}:{value}" if os.environ.get(name) else value
            for name, value in AGENT_ENVIRONMENT.items()
        }
        environment = {**os.environ, **own}
        done = subprocess.run(
            [sys.executable, str(AGENT)],
            input=request,
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode != 0:
            last = (
                done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
            )[-1]
            raise CandidateFailed(
                f"timing: {last}" + (" (out of memory?)" if done.returncode == -9 else "")
            )
        return done.stdout

    def close(self) -> None: ...


def save_batches(file: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]) -> None:
    """Write model inputs as an .npz file of arrays named ``0.input_ids``, ``0.attention_mask``,
    ``1.input_ids`` ..."""
    arrays: dict[str, Any] = {
        f"{i}.{name}": array for i, batch in enumerate(batches) for name, array in batch.items()
    }
    np.savez(file, **arrays)


def ask(
    host: Host,
    request: Mapping[str, Any],
    models: Sequence[Path] = (),
    batches: Sequence[Mapping[str, NDArray[np.int64]]] = (),
) -> dict[str, Any]:
    """The agent's answer. It must repeat the nonce of this request and the hashes of these files,
    so that neither an old answer nor an old file on the device can stand for a measurement. To
    ``time``, the device is ``reserved``.

    Args:
        models: ONNX files.
        batches: model inputs, for the action ``score``.

    Raises:
        CandidateFailed: the agent refused, the answer is not of this request, or the device was
            lost.
    """
    nonce = secrets.token_hex(16)
    hashes = [sha256(model) for model in models]
    placed = [
        {"path": host.place(model, f"{digest}.onnx")}
        for model, digest in zip(models, hashes, strict=True)
    ]
    full = {**request, "nonce": nonce, "models": placed}
    with tempfile.TemporaryDirectory() as folder:
        if batches:
            file = Path(folder) / "batches.npz"
            save_batches(file, batches)
            hashes.append(sha256(file))
            full |= {
                "batches": {"path": host.place(file, f"{hashes[-1]}.npz")},
                "count": len(batches),
            }
        with reserved(host.location) if request["action"] == "time" else nullcontext():
            output = host.run_agent(json.dumps(full))
    try:
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
        fresh = answer["nonce"] == nonce
    except (ValueError, IndexError, KeyError, TypeError):
        raise CandidateFailed(f"the device answered what is no answer: {output[-200:]!r}") from None
    if not fresh:
        raise CandidateFailed("the device answered another request than the one asked")
    if "refused" in answer:
        raise CandidateFailed(str(answer["refused"]))
    if answer["sha256"] != hashes:
        raise CandidateFailed("the device read other files than those sent")
    return answer

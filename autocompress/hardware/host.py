"""Where the agent runs: this machine in a fresh process, or a board; and how its answers are
checked."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.cores import reserved
from autocompress.errors import CandidateFailed, DeviceLost
from autocompress.files import sha256
from autocompress.hardware.patience import Patience, time_left

AGENT = Path(__file__).with_name("agent.py")
"""The one file that a device needs beside Python, numpy and onnxruntime."""
AGENT_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Weights in huge pages, where the system has them: with small ones a process is some per cent
faster or slower than the next."""
_SENDINGS = 2
"""Of a file that is damaged there."""


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
            CandidateFailed: there is no room for it.
            DeviceLost: the connection was lost, also when tried again.
        """
        ...

    def forget(self, names: Collection[str]) -> None:
        """Files of these names are damaged there: they are sent again when next placed."""
        ...

    def run_agent(self, request: str, limit_s: float) -> str:
        """Standard output of the agent, given the request on standard input.

        Raises:
            CandidateFailed: the process died.
            DeviceLost: the connection was lost, also when tried again.
            TimeoutError: no answer within so many seconds; what ran there is ended.
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

    def forget(self, names: Collection[str]) -> None: ...

    def run_agent(self, request: str, limit_s: float) -> str:
        own = {
            name: f"{os.environ[name]}:{value}" if os.environ.get(name) else value
            for name, value in AGENT_ENVIRONMENT.items()
        }
        environment = {**os.environ, **own}
        try:
            done = subprocess.run(
                [sys.executable, str(AGENT)],
                input=request,
                capture_output=True,
                text=True,
                env=environment,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
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
    patience: Patience | None = None,
) -> dict[str, Any]:
    """The agent's answer. It must repeat the nonce of this request and the hashes of these files,
    so that neither an old answer nor an old file on the device can stand for a measurement; what is
    damaged there is sent once more. To ``time``, the device is ``reserved``.

    Args:
        models: ONNX files.
        batches: model inputs, for the action ``score``.
        patience: with this device; that with an unknown one if not given.

    Raises:
        CandidateFailed: the agent refused, the answer is not of this request, or there was none in
            time from a device that still says what it is.
        DeviceLost: the device does not answer, or damages what it is sent.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = list(models)
        if batches:
            files.append(Path(folder) / "batches.npz")
            save_batches(files[-1], batches)
        hashes = [sha256(file) for file in files]
        names = [f"{digest}{file.suffix}" for digest, file in zip(hashes, files, strict=True)]
        for _ in range(_SENDINGS):
            placed = [
                {"path": host.place(file, name), "sha256": digest}
                for file, name, digest in zip(files, names, hashes, strict=True)
            ]
            full = {**request, "models": placed[: len(models)]}
            if batches:
                full |= {"batches": placed[-1], "count": len(batches)}
            answer = _answer(host, full, patience or Patience())
            if answer.get("sha256") == hashes:
                break
            host.forget(names)
        else:
            raise DeviceLost(f"{host.location}: the device read other files than those sent")
    if "refused" in answer:
        raise CandidateFailed(str(answer["refused"]))
    return answer


def _answer(host: Host, request: Mapping[str, Any], patience: Patience) -> dict[str, Any]:
    """To this very request, in time; raises as ``ask``."""
    nonce = secrets.token_hex(16)
    with reserved(host.location) if request["action"] == "time" else nullcontext():
        limit_s, started = patience.limit_s(request), time.monotonic()
        try:
            output = host.run_agent(json.dumps({**request, "nonce": nonce}), limit_s)
        except TimeoutError:
            raise _overdue(host, request, limit_s) from None
    try:
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
        fresh = answer["nonce"] == nonce
    except (ValueError, IndexError, KeyError, TypeError):
        raise CandidateFailed(f"the device answered what is no answer: {output[-200:]!r}") from None
    if not fresh:
        raise CandidateFailed("the device answered another request than the one asked")
    patience.learn(request, time.monotonic() - started)
    return answer


def _overdue(host: Host, request: Mapping[str, Any], limit_s: float) -> Exception:
    """Why there was no answer: the time is up, the device cannot even say what it is, or else the
    candidate."""
    silent = f"{host.location}: no answer within {limit_s:.0f} s"
    if time_left() <= 0:
        return DeviceLost(f"{silent}, and the time is up")
    if request["action"] == "describe":
        return DeviceLost(silent)
    ask(host, {"action": "describe"})
    return CandidateFailed(silent)

"""ONNX files timed and scored by onnxruntime, on this machine or on a board."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.artifact import facts, onnx_file, scheme_of
from autocompress.errors import CandidateFailed, DeviceLost, UserError
from autocompress.formats import FORMATS
from autocompress.graphs.reading import external_files, has_cache
from autocompress.graphs.runtime import predict
from autocompress.hardware.agent import PROVIDERS, kept
from autocompress.hardware.host import Host, LocalHost, ask
from autocompress.hardware.patience import Patience
from autocompress.hardware.profile import ASIDE, HardwareProfile
from autocompress.hardware.timing import grouped, in_phases, in_regimes, timings
from autocompress.interfaces import Question
from autocompress.scores import Timing

_BATCHES_PER_REQUEST = 64


class OnnxDevice:
    """A ``Device``; one agent serves this machine and boards alike.

    Raises:
        UserError: the device cannot be reached, or lacks the runtime's provider.
    """

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int], host: Host) -> None:
        self.profile, self.lengths, self.host = profile, tuple(lengths), host
        self.is_local, self.patience = isinstance(host, LocalHost), Patience()
        try:
            self.fingerprint = described(host)
        except (CandidateFailed, DeviceLost) as error:
            host.close()
            raise UserError(f"hardware profile {profile.name}: {error}") from error
        provider = PROVIDERS[profile.runtime]
        if provider not in self.fingerprint["providers"]:
            host.close()
            raise UserError(
                f"hardware profile {profile.name}: onnxruntime there has no {provider}"
                + ("; onnxruntime-gpu has it" if "CUDA" in provider else "")
            )

    @property
    def answers_like(self) -> str:
        profile = self.profile
        return f"{profile.location} {profile.python} {profile.ssh_config} {profile.runtime}"

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        groups = grouped(models, baseline, self.fingerprint["memory_bytes"])
        firsts, rests = zip(*(self._timed(baseline, group, final) for group in groups), strict=True)
        return firsts[0], [timing for rest in rests for timing in rest]

    def _timed(
        self, baseline: Path, models: Sequence[Path], final: bool
    ) -> tuple[Timing, list[Timing]]:
        profile, files = self.profile, [self._file(path) for path in (baseline, *models)]
        precisions = [FORMATS[scheme_of(path)].stored for path in (baseline, *models)]
        seconds = (profile.final_seconds if final else profile.trial_seconds) * max(1, len(models))
        request = {
            "action": "time",
            "runtime": profile.runtime,
            "threads": profile.threads,
            "batch_size": profile.batch_size,
            "lengths": self.lengths,
            "regime": profile.regime,
            "statistic": profile.statistic,
            "confidence": profile.confidence,
            "target_precision": profile.target_precision,
            "seconds": seconds,
            "memory": [final or not models, *([True] * len(models))],
        }

        def timed(change: Mapping[str, Any]) -> list[Timing]:
            answer = ask(self.host, {**request, **change}, files, patience=self.patience)
            return timings(answer, profile, precisions)

        workload: dict[str, Any] = {}
        aside = {"seconds": ASIDE * seconds}
        if has_cache(files[0]):
            first, *others = profile.phases(final)
            workload = {**profile.generation(self.lengths), "lengths": [1], "phase": first}
            timed_models = in_phases(
                {first: timed(workload)}
                | {phase: timed({**workload, **aside, "phase": phase}) for phase in others}
            )
        else:
            profile.check_not_generating()
            timed_models = timed(workload)
        for regime in profile.regimes(final)[1:]:
            known = {**aside, "regime": regime, "memory": [False] * len(files)}
            timed_models = in_regimes(timed_models, regime, timed({**workload, **known}))
        return timed_models[0], timed_models[1:]

    def predict(self, model: Path, batches: Sequence[Question]) -> NDArray[np.floating[Any]]:
        if self.is_local and self.profile.runtime == "onnxruntime-cpu":
            return answers_here(model, batches)
        request = {
            "action": "score",
            "runtime": self.profile.runtime,
            "threads": self.profile.threads,
        }
        pieces = [
            batches[i : i + _BATCHES_PER_REQUEST]
            for i in range(0, len(batches), _BATCHES_PER_REQUEST)
        ]
        files = [self._file(model)]
        return np.concatenate(
            [_outputs(ask(self.host, request, files, piece, self.patience)) for piece in pieces]
        )

    def _file(self, model: Path) -> Path:
        """The model's one file.

        Raises:
            UserError: it has others beside it, and would have to go to a board.
        """
        file = onnx_file(model)
        beside = [] if self.is_local or facts(model) else external_files(file)
        if beside:
            raise UserError(
                f"{file} keeps weights in {beside[0]}: a board is sent one file; save it whole, "
                "onnx.save(onnx.load(PATH), NEW_PATH)"
            )
        return file

    def close(self) -> None:
        self.host.close()


def answers_here(model: Path, batches: Sequence[Question]) -> NDArray[np.floating[Any]]:
    """Those of onnxruntime on this machine, see ``Device.predict``."""
    try:
        return predict(onnx_file(model), batches, kept)
    except UserError as error:
        raise CandidateFailed(str(error)) from error


def described(host: Host) -> dict[str, Any]:
    """What the agent says of its device; raises as ``ask``."""
    answer = ask(host, {"action": "describe"})
    return {key: value for key, value in answer.items() if key not in ("nonce", "sha256")}


def _outputs(answer: Mapping[str, Any]) -> NDArray[np.floating[Any]]:
    outputs: NDArray[np.floating[Any]] = np.load(
        io.BytesIO(base64.b64decode(answer["npy"])), allow_pickle=False
    )
    return outputs

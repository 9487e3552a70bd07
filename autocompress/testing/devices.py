"""What a device promises."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.artifact import onnx_file
from autocompress.errors import CandidateFailed
from autocompress.families import family_of
from autocompress.graphs.runtime import predict
from autocompress.interfaces import Batch, Device, Question
from autocompress.plan import Plan
from autocompress.scores import Timing
from autocompress.shipping import Graph
from autocompress.structure import Structure
from autocompress.techniques import SETTINGS
from autocompress.testing.models import BATCH, build, padded, texts, tiny
from autocompress.testing.suite import Suite

_TIMES = 20
"""That a comparison is repeated until it is decided."""


class DeviceSuite(Suite):
    """A device finds a deeper model slower, says how sure it is, answers as the model does, and
    refuses what it cannot run as a failure of the candidate.

    Attributes:
        members: by name, what connects the device; with short times, since each test times.
        tolerance: by which answers may differ from those of onnxruntime on this machine.
        generates: whether it runs language models.
    """

    members: ClassVar[Mapping[str, Callable[[], Device]]] = {}
    tolerance: ClassVar[float] = 1e-5
    generates: ClassVar[bool] = True

    @pytest.fixture(scope="class")
    @classmethod
    def folders(cls, tmp_path_factory: pytest.TempPathFactory) -> Folders:
        return Folders(tmp_path_factory.mktemp("artifacts"))

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls, member: Callable[[], Device]) -> Iterator[Device]:
        connected = member()
        yield connected
        connected.close()

    def test_it_says_what_it_is(self, device: Device) -> None:
        assert device.lengths and all(length > 0 for length in device.lengths)
        assert json.loads(json.dumps(dict(device.fingerprint)))
        assert device.answers_like and device.profile.name

    def test_a_deeper_model_is_slower(self, device: Device, folders: Folders) -> None:
        """One of four times the layers; timed again while the interval holds both answers."""
        for _ in range(_TIMES):
            baseline, [other] = device.time(folders.deep, [folders.shallow], final=False)
            _check_timing(baseline, device)
            _check_timing(other, device)
            low, high = other.speedup_interval
            if low > 1 or high < 1 or device.profile.estimated:
                break
        assert low > 1 and other.speedup > 1
        assert other.latency_ms.value < baseline.latency_ms.value

    def test_a_model_is_as_fast_as_itself(self, device: Device, folders: Folders) -> None:
        """The baseline alone, and beside itself; within a factor of two on a machine at work."""
        alone, none = device.time(folders.deep, [], final=False)
        baseline, [itself] = device.time(folders.deep, [folders.deep], final=True)
        assert none == [] and 0.5 < itself.speedup < 2
        for timing in (alone, baseline, itself):
            _check_timing(timing, device)
        assert alone.speedup == baseline.speedup == 1

    def test_answers_are_those_of_the_model(self, device: Device, folders: Folders) -> None:
        """To all batches, one below the other."""
        batches = [BATCH.inputs, padded(texts((4, 4), seed=1)).inputs]
        answers = []
        for folder in (folders.deep, folders.shallow):
            answers.append(device.predict(folder, batches))
            expected = predict(onnx_file(folder), batches)
            assert answers[-1].shape == expected.shape == (5, 2)
            np.testing.assert_allclose(answers[-1], expected, rtol=0, atol=self.tolerance)
        assert not np.allclose(answers[0], answers[1], rtol=0, atol=2 * self.tolerance)

    def test_text_is_scored_by_its_last_tokens(self, device: Device, folders: Folders) -> None:
        if not self.generates:
            pytest.skip("it runs no language models")
        ids = padded(texts((8, 8, 8))).inputs
        question = {**ids, "scored": np.array([7, 3, 1])}
        nll = device.predict(folders.language_model, [question])
        logits = predict(onnx_file(folders.language_model), [ids]).astype(np.float64)
        assert nll.shape == (3,)
        expected = _nll(logits, ids["input_ids"], question)
        np.testing.assert_allclose(nll, expected, rtol=1e-3, atol=self.tolerance)

    def test_what_it_cannot_run_fails_the_candidate(self, device: Device, folders: Folders) -> None:
        with pytest.raises(CandidateFailed):
            device.time(folders.deep, [folders.broken], final=False)
        with pytest.raises(CandidateFailed):
            device.predict(folders.broken, [BATCH.inputs])


class Folders:
    """Model folders as they ship."""

    def __init__(self, root: Path) -> None:
        sizes = {"hidden_size": 64, "intermediate_size": 256}
        whole = tiny("bert", "BertForSequenceClassification", **sizes)
        self.deep = _shipped(whole, 4, root / "deep")
        self.shallow = _shipped(whole, 1, root / "shallow")
        self.language_model = _shipped(tiny("gpt2", "GPT2LMHeadModel"), 2, root / "language")
        self.broken = root / "broken"
        self.broken.mkdir()
        (self.broken / "model.onnx").write_bytes(b"no graph")
        (self.broken / "model.safetensors").write_bytes(b"no weights")
        (self.broken / "config.json").write_text("{}", encoding="utf-8")


def _shipped(config: Any, layers: int, folder: Path) -> Path:
    """The first layers of a model, in fp32."""
    family, model = family_of(config.model_type), build(config)
    structure = Structure(family.structure(model).layers[:layers])
    nothing = folder.parent / "no tokenizer"
    nothing.mkdir(exist_ok=True)
    batch = Batch(padded(texts((8, 8))).inputs)
    plan, file = Plan(family.name, structure), folder.parent / f"{folder.name}.onnx"
    Graph(family.cut(model, structure), plan, file, [batch]).ship(
        SETTINGS.candidate({}), folder, nothing
    )
    return folder


def _check_timing(timing: Timing, device: Device) -> None:
    """Finite, more than zero, and inside of what is said to hold it."""
    latency, profile = timing.latency_ms, device.profile
    (low, high), (slower, faster) = latency.interval, timing.speedup_interval
    figures = (latency.value, latency.p90, latency.slowest, low, high, slower, faster)
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert low <= latency.value <= high and slower <= timing.speedup <= faster
    assert latency.p90 <= latency.slowest
    assert latency.basis == profile.basis and (latency.n > 0) != profile.estimated
    assert profile.estimated or latency.confidence == profile.confidence


def _nll(
    logits: NDArray[np.float64], ids: NDArray[np.int64], question: Question
) -> NDArray[np.float64]:
    """Of the last tokens of each row, by hand."""
    likely = logits - logits.max(-1, keepdims=True)
    logs = likely - np.log(np.exp(likely).sum(-1, keepdims=True))
    said = np.take_along_axis(logs[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    pairs = zip(said, question["scored"], strict=True)
    return np.array([-row[len(row) - count :].sum() for row, count in pairs])

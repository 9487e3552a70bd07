"""Latency: the statistics by hand, and the real timer on real graphs. No time is asserted, only ratios far apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from autocompress.errors import AutocompressError, UserError
from autocompress.export import to_onnx
from autocompress.hardware.profile import HardwareProfile
from autocompress.hardware.timing import MIN_ROUNDS, OnnxRuntimeTimer, summarise, time_rounds
from autocompress.interfaces import Batch
from autocompress.pareto import Latency

PROFILE = HardwareProfile("test", "", "onnxruntime-cpu", 1, 1, 32, trial_seconds=0.2, final_seconds=0.2)


def graph(path: Path, layers: int = 1, vocabulary: int = 1000, positions: int = 64) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=positions,
    )
    ones = np.ones((1, 4), np.int64)
    to_onnx(BertForSequenceClassification(config), path, Batch({"input_ids": ones, "attention_mask": ones}))
    return path


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("shallow") / "model.onnx")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("deep") / "model.onnx", layers=4)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph at all")
    return path


def test_steady_times_by_hand() -> None:
    baseline, timings = summarise(np.tile([6.0, 2.0, 12.0], (5, 1)))
    assert baseline == Latency(6.0, 6.0, (6.0, 6.0), 5, "measured")
    assert [timing.latency_ms for timing in timings] == [Latency(2.0, 2.0, (2.0, 2.0), 5), Latency(12.0, 12.0, (12.0, 12.0), 5)]
    assert [(timing.speedup, timing.speedup_ci95) for timing in timings] == [(3.0, (3.0, 3.0)), (0.5, (0.5, 0.5))]


def test_a_machine_that_wavers_hits_all_models_alike() -> None:
    """The latency is uncertain, the ratio is not: rounds are drawn whole."""
    times = np.array([14.0, 20.0, 10.0, 17.0, 12.0, 19.0, 11.0, 15.0, 18.0, 13.0, 16.0])
    baseline, [timing] = summarise(np.stack([times, times / 2], axis=1))
    assert (baseline.median, baseline.p90, baseline.n) == (15.0, 19.0, 11)
    assert (timing.latency_ms.median, timing.latency_ms.p90) == (7.5, 9.5)
    assert timing.speedup == 2.0 and timing.speedup_ci95 == (2.0, 2.0)
    low, high = baseline.ci95
    assert 10 < low < 15 < high < 20


def test_a_single_slow_run_moves_neither_median_nor_speedup() -> None:
    rounds = np.tile([6.0, 2.0], (31, 1))
    rounds[4] = [6000.0, 1.0]
    baseline, [timing] = summarise(rounds)
    assert baseline.median == 6.0 and timing.speedup == 3.0 and timing.speedup_ci95 == (3.0, 3.0)


def test_independent_noise_widens_the_interval_of_the_ratio() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for noise in (0.01, 0.1):
        _, [timing] = summarise(np.array([4.0, 2.0]) * (1 + noise * rng.standard_normal((60, 2))))
        low, high = timing.speedup_ci95
        assert low < timing.speedup < high and low < 2.0 < high
        widths.append(high - low)
    assert 5 * widths[0] < widths[1]


def test_alone_a_model_has_a_latency_and_no_ratio() -> None:
    baseline, timings = summarise(np.full((3, 1), 4.0))
    assert baseline == Latency(4.0, 4.0, (4.0, 4.0), 3) and timings == []


def test_enough_rounds_even_without_time(shallow: Path, deep: Path) -> None:
    found = time_rounds([deep, shallow, shallow], PROFILE, seconds=0)
    assert found.shape == (MIN_ROUNDS, 3) and (found > 0).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("final", [False, True], ids=["trial", "fresh process"])
def test_four_times_the_depth_is_slower(shallow: Path, deep: Path, threads: int, final: bool) -> None:
    profile = HardwareProfile("test", "", "onnxruntime-cpu", threads, 1, 32, trial_seconds=0.2, final_seconds=0.2)
    baseline, [faster, same] = OnnxRuntimeTimer(profile)(deep, [shallow, deep], final=final)
    assert faster.speedup > 1.5 and faster.latency_ms.median < baseline.median
    assert faster.speedup == pytest.approx(baseline.median / faster.latency_ms.median)
    assert 0.5 < same.speedup < 2
    assert baseline.n >= MIN_ROUNDS and faster.latency_ms.n == baseline.n
    low, high = faster.speedup_ci95
    assert low <= faster.speedup <= high


def test_larger_batches_take_longer(shallow: Path) -> None:
    medians = []
    for batch_size in (1, 16):
        profile = HardwareProfile("test", "", "onnxruntime-cpu", 1, batch_size, 32, trial_seconds=0.1)
        medians.append(OnnxRuntimeTimer(profile)(shallow, [shallow], final=False)[0].median)
    assert medians[1] > 3 * medians[0]


def test_a_model_of_few_tokens_can_be_timed(shallow: Path, tmp_path: Path) -> None:
    """Models of proteins and of characters have some 30 tokens."""
    found = time_rounds([shallow, graph(tmp_path / "model.onnx", vocabulary=30)], PROFILE, seconds=0)
    assert found.shape == (MIN_ROUNDS, 2)


@pytest.mark.parametrize("final", [False, True], ids=["trial", "fresh process"])
def test_a_profile_longer_than_the_model_allows_is_a_clear_error(tmp_path: Path, final: bool) -> None:
    with pytest.raises(AutocompressError) as caught:
        OnnxRuntimeTimer(PROFILE)(graph(tmp_path / "model.onnx", positions=16), [], final=final)
    assert str(tmp_path / "model.onnx") in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_file_is_a_clear_error(shallow: Path, broken: Path) -> None:
    with pytest.raises(UserError, match=rf"^{broken}: onnxruntime cannot load it: [^\n]*$"):
        OnnxRuntimeTimer(PROFILE)(shallow, [broken], final=False)


def test_a_broken_file_is_a_clear_error_in_a_fresh_process_too(broken: Path) -> None:
    """The file may be what a user gave to ``autocompress measure``."""
    with pytest.raises(UserError, match=rf"^(?!.*\['){broken}: onnxruntime cannot load it: [^\n]*$"):
        OnnxRuntimeTimer(PROFILE)(broken, [], final=True)

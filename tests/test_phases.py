"""A language model is timed in phases: what each runs, which one its latency is of, and how that is
said."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress import HardwareProfile, Limits, UserError, console, verbs
from autocompress.cli import main
from autocompress.errors import CandidateFailed
from autocompress.formats import convert
from autocompress.graphs.export import to_onnx
from autocompress.graphs.reading import Attention, attention, operations
from autocompress.graphs.runtime import Model, past_of, predict
from autocompress.hardware import agent, onnx_device
from autocompress.hardware.datasheet import DatasheetDevice, roofline_ms
from autocompress.hardware.host import LocalHost, ask
from autocompress.hardware.onnx_device import OnnxDevice
from autocompress.hardware.profile import PHASES
from autocompress.hardware.timing import in_phases
from autocompress.interfaces import Batch
from autocompress.pareto import Front, Member
from autocompress.scores import Latency, Quality, Timing
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS
from tests.tiny_models import HIDDEN, LAYERS, MODELS, VOCABULARY, build

PROFILE = HardwareProfile(
    "test", "", "cpu", "onnxruntime-cpu", 2, 16, trial_seconds=0.1, final_seconds=0.1
)
GENERATION: dict[str, Any] = {"prompt_length": 5, "context_length": 7, "generated_tokens": 4}
REQUEST = {
    "runtime": "onnxruntime-cpu",
    "threads": 1,
    "batch_size": 2,
    "lengths": [1],
    **GENERATION,
}
PRECISION = {"statistic": "median", "confidence": 0.95, "target_precision": 0.5, "seconds": 0.0}


def graph(
    path: Path, name: str = "llama ungrouped, tied, with biases", structure: Structure | None = None
) -> Path:
    model = build(name)
    ones = np.ones((1, 4), np.int64)
    smaller = MODELS[name].family.cut(model, structure) if structure else model
    to_onnx(smaller, path, Batch({"input_ids": ones, "attention_mask": ones}))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("whole") / "model.onnx")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("classifier") / "model.onnx", "gpt2")


class Watched:
    """A session that notes what is run: tokens read, tokens in the cache, and the tokens
    themselves."""

    def __init__(self, path: Path) -> None:
        self.made = agent.session(str(path), REQUEST)
        self.seen: list[tuple[int, int]] = []
        self.ids: list[NDArray[np.int64]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made, name)

    def run(self, names: None, feed: dict[str, NDArray[Any]]) -> Any:
        self.ids.append(feed["input_ids"])
        read, total = (feed[name].shape[1] for name in ("input_ids", "attention_mask"))
        assert {array.shape[2] for name, array in feed.items() if name.startswith("past")} == {
            total - read
        }
        self.seen.append((read, total - read))
        return self.made.run(names, feed)


@pytest.mark.parametrize(
    ("phase", "runs"),
    [("prefill", [(5, 0)]), ("decode", [(1, 7)]), ("end-to-end", [(5, 0), (1, 5), (1, 6), (1, 7)])],
)
def test_what_a_phase_runs(model: Path, phase: str, runs: list[tuple[int, int]]) -> None:
    watched = Watched(model)
    run = agent.generation(watched, REQUEST | {"phase": phase})
    run()
    run()
    assert watched.seen == 2 * runs


def test_a_text_is_generated_greedily(model: Path) -> None:
    watched = Watched(model)
    agent.generation(watched, REQUEST | {"phase": "end-to-end"})()
    given = np.concatenate(watched.ids, axis=1)
    assert given.shape == (2, 8)
    for end in range(5, 8):
        [scores] = [
            predict(
                model,
                [{"input_ids": given[:, :end], "attention_mask": np.ones((2, end), np.int64)}],
            )
        ]
        assert np.array_equal(scores[:, -1].argmax(-1), given[:, end])


def test_a_model_without_a_cache_generates_too(tmp_path: Path) -> None:
    path = graph(tmp_path / "model.onnx", structure=Structure((Layer(1, (), (2, 3)),)))
    for phase in PHASES:
        agent.generation(agent.session(str(path), REQUEST), REQUEST | {"phase": phase})()


@pytest.mark.parametrize(("phase", "rounds"), [("prefill", 8), ("decode", 8), ("end-to-end", 3)])
def test_times_of_real_models(model: Path, phase: str, rounds: int) -> None:
    assert (agent.FEWEST_ROUNDS, agent.FEWEST_LONG_ROUNDS) == (8, 3)
    request = REQUEST | PRECISION | {"action": "time", "phase": phase, "memory": [True, False]}
    answer = ask(LocalHost(), request, [model, model])
    assert np.shape(answer["wall_ms"]) == np.shape(answer["cpu_ms"]) == (3, rounds, 2)
    assert (
        np.min(answer["cpu_ms"]) > 0
        and answer["memory_bytes"][0] > 0
        and answer["memory_bytes"][1] is None
    )


def test_more_tokens_than_positions_are_refused_in_one_line(tmp_path: Path) -> None:
    path = graph(tmp_path / "model.onnx", "gpt2 with its head tied")
    request = REQUEST | PRECISION | {"action": "time", "memory": [False], "phase": "decode"}
    ask(LocalHost(), request | {"context_length": 127}, [path])
    with pytest.raises(CandidateFailed, match=r"^onnxruntime cannot run it: [^\n]+$"):
        ask(LocalHost(), request | {"context_length": 128}, [path])


def test_scores_are_with_an_empty_cache(model: Path) -> None:
    rng = np.random.default_rng(0)
    given = [
        {"input_ids": rng.integers(2, 50, (3, n)), "attention_mask": np.ones((3, n), np.int64)}
        for n in (6, 6)
    ]
    answer = ask(
        LocalHost(), {"runtime": "onnxruntime-cpu", "threads": 1, "action": "score"}, [model], given
    )
    np.testing.assert_array_equal(onnx_device._outputs(answer), predict(model, given))
    session = Model(model, threads=1)
    first = session.outputs({key: value[:, :4] for key, value in given[0].items()})
    rest: dict[str, NDArray[Any]] = {
        "input_ids": given[0]["input_ids"][:, 4:],
        "attention_mask": given[0]["attention_mask"],
        **past_of(first),
    }
    np.testing.assert_allclose(session(rest), predict(model, given)[:3, 4:], rtol=0, atol=1e-4)


def latency(ms: float) -> Latency:
    return Latency(ms, ms, ms, (ms, ms), 3)


def timing(ms: float, speedup: float, **more: Any) -> Timing:
    return Timing(latency(ms), speedup, (speedup, speedup), **more)


TIMINGS = {
    "decode": [timing(4.0, 1.0), timing(2.0, 2.0)],
    "prefill": [timing(30.0, 1.0), timing(10.0, 3.0)],
}
SECOND = timing(2.0, 2.0, phase="decode", others=(timing(10.0, 3.0, phase="prefill"),))


def test_the_first_phase_is_what_latency_means_and_carries_the_others() -> None:
    first, second = in_phases(TIMINGS)
    assert first == timing(4.0, 1.0, phase="decode", others=(timing(30.0, 1.0, phase="prefill"),))
    assert second == SECOND
    assert str(second) == "decode 2 ms (2.00x)"
    assert Timing.from_json(json.loads(json.dumps(asdict(second)))) == second


def test_every_phase_is_a_line() -> None:
    shown = replace(SECOND, wall_ms=2.5, others=(replace(SECOND.others[0], wall_ms=11.0),))
    assert console.timing_text(shown).split("\n") == [
        "decode 2 ms (95 % 2 to 2), p10 of 3 rounds, p90 2 ms, wall 2.5 ms",
        "prefill 10 ms (95 % 10 to 10), p10 of 3 rounds, p90 10 ms, wall 11 ms",
    ]


class Asked:
    """Answers with a latency of its own for each phase and model; notes the requests."""

    MS: Mapping[str | None, float] = {"decode": 2.0, "prefill": 10.0, "end-to-end": 20.0, None: 5.0}

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def __call__(
        self, host: Any, request: dict[str, Any], models: Sequence[Path] = (), **_: object
    ) -> dict[str, Any]:
        if request["action"] == "describe":
            return {"memory_bytes": 0, "providers": ["CPUExecutionProvider"]}
        self.requests.append(request)
        ms = [[[self.MS[request.get("phase")] * (i + 1) for i in range(len(models))]] * 10] * 3
        return {
            "wall_ms": ms,
            "cpu_ms": ms,
            "clock": "cpu",
            "energy_mj": [None] * 2,
            "memory_bytes": [None] * 2,
        }


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    recorder = Asked()
    monkeypatch.setattr(onnx_device, "ask", recorder)
    return recorder


def test_trials_are_timed_in_one_phase_and_reported_models_in_all(
    model: Path, asked: Asked
) -> None:
    profile = replace(PROFILE, **GENERATION)
    device = OnnxDevice(profile, (16,), LocalHost())
    _, [trial] = device.time(model, [model], final=False)
    assert (trial.phase, trial.latency_ms.value, trial.speedup, trial.others) == (
        "decode",
        4.0,
        0.5,
        (),
    )
    [request] = asked.requests
    assert {key: request[key] for key in (*GENERATION, "lengths", "batch_size")} == {
        **GENERATION,
        "lengths": [1],
        "batch_size": 2,
    }

    _, [final] = OnnxDevice(replace(profile, phase="prefill"), (16,), LocalHost()).time(
        model, [model], final=True
    )
    assert (final.phase, final.latency_ms.value) == ("prefill", 20.0)
    assert [(other.phase, other.latency_ms.value) for other in final.others] == [
        ("decode", 4.0),
        ("end-to-end", 40.0),
    ]
    assert [
        (request["phase"], request["regime"], request["seconds"]) for request in asked.requests[1:]
    ] == [
        ("prefill", "warm", 0.1),
        ("decode", "warm", 0.05),
        ("end-to-end", "warm", 0.05),
        ("prefill", "cold", 0.05),
    ]
    assert final.beside and (final.beside.phase, final.beside.regime) == ("prefill", "cold")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"prompt_length": 56}, None),
        (
            {"prompt_length": 57},
            "prompt_length and generated_tokens together is 65, the model takes 64 tokens at most",
        ),
        ({"context_length": 63}, None),
        (
            {"context_length": 64},
            "context_length and the token after it is 65, the model takes 64 tokens at most",
        ),
    ],
)
def test_what_is_not_named_counts_against_the_models_length_too(
    changes: dict[str, Any], message: str | None
) -> None:
    """Half of the sequence length, 8 tokens, are generated."""
    profile = replace(PROFILE, **changes)
    if message is None:
        profile.check_lengths((16,), 64, generates=True)
    else:
        with pytest.raises(UserError, match=message):
            profile.check_lengths((16,), 64, generates=True)


def test_what_generates_nothing_is_timed_as_ever(classifier: Path, asked: Asked) -> None:
    baseline, _ = OnnxDevice(PROFILE, (16, 20), LocalHost()).time(
        classifier, [classifier], final=True
    )
    assert (baseline.phase, baseline.others, baseline.latency_ms.value) == (None, (), 5.0)
    assert [request["regime"] for request in asked.requests] == ["warm", "cold"]
    for request in asked.requests:
        assert request["lengths"] == (16, 20) and "phase" not in request


@pytest.mark.parametrize(("key", "value"), [*((key, 3) for key in GENERATION), ("phase", "decode")])
def test_a_key_of_language_models_is_refused_for_what_is_none(
    classifier: Path, asked: Asked, key: str, value: Any
) -> None:
    pi = HardwareProfile.load("edge-raspberry-pi-5")
    for device in (
        OnnxDevice(replace(PROFILE, **{key: value}), (16,), LocalHost()),
        DatasheetDevice(replace(pi, **{key: value}), (16,)),
    ):
        expected = (
            f"^hardware profile {device.profile.name}: {key} is for language models, and "
            f"this model generates nothing$"
        )
        with pytest.raises(UserError, match=expected):
            device.time(classifier, [], final=False)


@pytest.mark.parametrize(
    ("given", "lengths", "expected"),
    [
        ({}, (32,), (16, 16, 16)),
        ({}, (1,), (1, 1, 1)),
        ({"context_length": 200}, (32,), (16, 200, 16)),
        ({}, (8, 10, 12, 14, 20, 20, 30, 60), (10, 10, 10)),
        (GENERATION, (32,), (5, 7, 4)),
    ],
)
def test_what_a_profile_does_not_say_is_half_of_its_length(
    given: Any, lengths: Sequence[int], expected: tuple[int, ...]
) -> None:
    assert tuple(replace(PROFILE, **given).generation(lengths).values()) == expected


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("phase", [None, *PHASES])
def test_decode_is_what_latency_means_unless_the_profile_says_otherwise(
    phase: str | None, final: bool
) -> None:
    first, *others = replace(PROFILE, phase=phase).phases(final)
    assert first == (phase or "decode")
    assert {first, *others} == set(PHASES) if final else not others


def test_the_shipped_profile_for_language_models() -> None:
    profile = HardwareProfile.load("cpu-1-thread-generate")
    assert profile.generation((1,)) == {
        "prompt_length": 128,
        "context_length": 256,
        "generated_tokens": 64,
    }


@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic", "int4-weights"])
def test_an_estimate_reads_all_weights_for_each_token_the_heads_too(
    model: Path, scheme: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    convert(model, file, SETTINGS.candidate({"quantization.scheme": scheme}), [])
    products, operators = operations(file)
    assert VOCABULARY * HIDDEN in [product.weights for product in products]
    profile = replace(HardwareProfile.load("edge-raspberry-pi-5"), **GENERATION, batch_size=2)
    assert profile.peaks is not None

    assert attention(file) == Attention(LAYERS * HIDDEN, 2 * LAYERS * HIDDEN)
    peaks = profile.peaks
    gops = peaks.gops["fp32"] * peaks.efficiency * profile.threads

    def ms(tokens: int, seen: int) -> float:
        """Attention reads the keys and values of earlier tokens in fp32."""
        reading = 2 * 2 * LAYERS * HIDDEN * 4 * (seen - tokens) / (peaks.memory_gb_per_s * 1e6)
        attending = 2 * 4 * LAYERS * HIDDEN * tokens * seen / (gops * 1e6)
        rest = roofline_ms(products, operators, peaks, profile.threads, 2 * tokens)
        return rest + max(attending, reading)

    baseline, _ = DatasheetDevice(profile, (16,)).time(file, [], final=True)
    decoding = ms(1, GENERATION["context_length"] + 1)
    assert baseline.phase == "decode" and baseline.latency_ms.value == pytest.approx(decoding)
    values = {other.phase: other.latency_ms.value for other in baseline.others}
    text = ms(5, 5) + ms(1, 6) + ms(1, 7) + ms(1, 8)
    assert values == pytest.approx({"prefill": ms(5, 5), "end-to-end": text})


def options(*limits: str) -> argparse.Namespace:
    others: dict[str, Any] = {
        "min_speedup": [],
        "max_drop": None,
        "max_size": None,
        "min_compression": None,
        "confidence": 0.9,
    }
    return argparse.Namespace(max_latency=list(limits), **others)


@pytest.mark.parametrize("phase", PHASES)
def test_a_limit_can_name_its_phase(phase: str) -> None:
    assert verbs._in_phase(PROFILE, [f"{phase}=12ms"]) == replace(PROFILE, phase=phase)
    assert verbs._budgets(options(f"{phase}=12ms")) == (Limits(max_latency_ms=12.0), {})
    both = [f"{phase}=12ms", "board=0.1s"]
    assert verbs._in_phase(PROFILE, both) == replace(PROFILE, phase=phase)
    assert verbs._budgets(options(*both)) == (
        Limits(max_latency_ms=12.0),
        {"board": Limits(max_latency_ms=100.0)},
    )


def test_limits_that_name_no_phase_leave_the_profiles() -> None:
    assert verbs._in_phase(PROFILE, []) == verbs._in_phase(PROFILE, ["3ms", "board=4ms"]) == PROFILE


def test_limits_that_name_two_phases_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^--max-latency names decode and prefill: one of them is what latency means in a "
            r"search$"
        ),
    ):
        verbs._in_phase(PROFILE, ["prefill=3ms", "decode=1ms"])
    with pytest.raises(UserError, match=r"^--max-latency is given twice$"):
        verbs._budgets(options("decode=3ms", "4ms"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose front was searched for in the decode phase."""
    quality = Quality(0.8, 0.0, 0.0, 0.8, 0.01, 100, 0.0, 0.0)
    baseline, member = (
        Member(i, {}, quality, t, 1000, "", {"layers": [0], "heads": [1], "ffn": [1]})
        for i, t in (("t0", TIMINGS["decode"][0]), ("t1", SECOND))
    )
    baseline = replace(baseline, timing=replace(baseline.timing, phase="decode"))
    front = Front(
        "accuracy",
        baseline,
        PROFILE.as_dict() | PROFILE.generation((16,)),
        {},
        0.5,
        (member,),
        True,
    )
    (tmp_path / "front.json").write_text(json.dumps({"schema": 2, "fronts": [front.as_dict()]}))
    return tmp_path


def test_the_front_says_what_its_latencies_are_of(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["front", str(run)]) == 0
    assert (
        "1 models on test (accuracy on test, latencies of decode after 8 tokens)"
        in capsys.readouterr().out
    )


def test_picking_by_the_phase_that_was_searched(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pick", str(run), "--max-latency", "decode=3ms"]) == 0
    assert "t1: decode 2 ms" in capsys.readouterr().out
    assert main(["pick", str(run), "--max-latency", "prefill=3ms"]) == 2
    assert (
        "--max-latency prefill=3ms: the latencies of this front are of decode"
        in capsys.readouterr().err
    )

"""The examples run, and say what the artifacts say."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import autocompress
from autocompress.engine.loop import SearchResult
from autocompress.pareto import load_front
from tests.conftest import SizeDevice

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_of_the_front(printed: list[str], out: Path) -> bool:
    """Whether the quickstart has listed a run's front, and answered with what it picks."""
    front = load_front(out)
    best = front.pick(max_latency_ms=3.0)
    listed = [
        f"{member.id}: {member.latency_ms.value:.2f} ms, {member.speedup:.2f}x, drop "
        f"{member.quality.drop_reported:.2f} points"
        for member in front.members
    ]
    return printed in ([*listed, f"{best.id} answers {label}"] for label in (0, 1))


def test_quickstart(
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a device that takes no time."""
    quick = partial(autocompress.search, connect=partial(SizeDevice, pace=0.01), trials=1)
    monkeypatch.setattr(autocompress, "search", quick)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    example = runpy.run_path(str(EXAMPLES / "quickstart.py"))
    example["main"](str(tiny_model), str(data_file), str(tmp_path / "run"))
    assert is_of_the_front(capsys.readouterr().out.splitlines(), tmp_path / "run")


@pytest.mark.slow
def test_quickstart_on_this_machine(tiny_model: Path, data_file: Path, tmp_path: Path) -> None:
    printed = run("quickstart.py", str(tiny_model), str(data_file), str(tmp_path / "run"))
    assert is_of_the_front(printed.splitlines(), tmp_path / "run")


@pytest.mark.slow
def test_compress_gpt2(tiny_gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    space = tmp_path / "half.toml"
    space.write_text("[layers]\nkeep = [0.5]\n", encoding="utf-8")
    words = [str(tiny_gpt2), str(text_file), str(tmp_path / "run"), str(space), "1"]
    printed = run("compress_gpt2.py", *words).splitlines()
    front = load_front(tmp_path / "run")
    assert [line.split(":")[0] for line in printed[:-1]] == [member.id for member in front.members]
    for line, member in zip(printed, front.members, strict=False):
        assert (
            f"{member.speedup:.2f}x, perplexity {member.quality.test:.2f} "
            f"({member.quality.drop_test:+.2f} percent)" in line
        )
    assert printed[-1].startswith(("twice as fast: python examples/generate.py", "no model"))


@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic"])
def test_generate(scheme: str, tiny_model: Path, tmp_path: Path) -> None:
    """The text and what torch generates after it, or for int8 what the graph scores highest without
    its cache."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

    from autocompress.families import family_of
    from autocompress.graphs.runtime import predict
    from autocompress.interfaces import Batch
    from autocompress.techniques import SETTINGS
    from tests.exporting import export_model

    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    ones = np.ones((1, 8), np.int64)
    structure, candidate = (
        family_of("gpt2").structure(model),
        SETTINGS.candidate({"quantization.scheme": scheme}),
    )
    export_model(
        model,
        structure,
        candidate,
        tmp_path / "t",
        [Batch({"input_ids": ones, "attention_mask": ones})],
        tmp_path / "tokenizer",
    )
    printed = run("generate.py", str(tmp_path / "t"), "a fine film", "12").removesuffix("\n")
    ids = tokenizer("a fine film")["input_ids"]
    for _ in range(12):
        given = np.array([ids])
        feed = {"input_ids": given, "attention_mask": np.ones_like(given)}
        logits = (
            predict(tmp_path / "t" / "model.onnx", [feed])
            if scheme != "fp32"
            else model(torch.from_numpy(given)).logits
        )
        ids.append(int(logits[0, -1].argmax()))
    assert printed == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", ["a fine film", "dull beyond words"])
def test_run_exported(text: str, by_task: SearchResult) -> None:
    out = by_task.run
    answer, logits = run("run_exported.py", str(out / "models/t000"), text).split(" ", 1)
    from transformers import AutoTokenizer

    from autocompress import load_model

    inputs = AutoTokenizer.from_pretrained(out / "tokenizer")([text], return_tensors="pt")
    expected = load_model(out / "models/t000")(**inputs).logits
    assert int(answer) == int(expected.argmax())
    assert json.loads(logits)[0] == pytest.approx(expected[0].tolist(), abs=1e-5)

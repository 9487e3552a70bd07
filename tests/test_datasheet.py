"""Estimates from published peaks: worked out by hand, counted on real exports, and never shown as
measurements."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from autocompress import HardwareProfile, SearchResult, SearchSpace, UserError, search
from autocompress.cli import main
from autocompress.families import family_of
from autocompress.graphs.reading import Attention, Product, attention, operations
from autocompress.hardware.datasheet import DatasheetDevice, roofline_ms
from autocompress.hardware.devices import connect
from autocompress.hardware.profile import Peaks
from autocompress.interfaces import Batch
from autocompress.journal import Run
from autocompress.measure import measure_latency
from autocompress.structure import Layer, Structure
from autocompress.techniques import SETTINGS
from autocompress.training.teacher import load_classifier
from tests.exporting import export_model

PEAKS = Peaks(
    {"fp32": 2.0, "int8-dynamic": 8.0}, memory_gb_per_s=4.0, overhead_us=10.0, efficiency=0.5
)
PI = "edge-raspberry-pi-5"


def test_starting_operators_takes_what_it_takes() -> None:
    assert roofline_ms([], 7, PEAKS, 1, 1000) == pytest.approx(0.07)


def test_a_product_of_many_tokens_is_bound_by_arithmetic() -> None:
    """1000 weights and 8 tokens: 16,000 operations at half of 2 GOPS take 16 us; 4 kB at 4 GB/s
    take 1 us."""
    assert roofline_ms([Product(1000, "fp32")], 0, PEAKS, 1, 8) == pytest.approx(0.016)
    assert roofline_ms([Product(1000, "fp32")], 3, PEAKS, 1, 8) == pytest.approx(0.046)
    assert roofline_ms([Product(1000, "fp32")], 0, PEAKS, 1, 16) == pytest.approx(0.032)


def test_a_product_of_few_tokens_is_bound_by_memory() -> None:
    """A million weights and one token, at 1000 times the arithmetic: 2 us of it; 4 MB at 4 GB/s
    take 1 ms."""
    fast = replace(PEAKS, gops={"fp32": 2000.0})
    assert roofline_ms([Product(10**6, "fp32")], 0, fast, 1, 1) == pytest.approx(1.0)
    assert roofline_ms([Product(10**6, "fp32")], 0, fast, 1, 100) == pytest.approx(1.0)


def test_cores_share_the_memory_and_not_the_arithmetic() -> None:
    product = [Product(1000, "fp32")]
    assert [roofline_ms(product, 0, PEAKS, threads, 8) for threads in (1, 2, 4)] == pytest.approx(
        [0.016, 0.008, 0.004]
    )
    assert roofline_ms(product, 0, PEAKS, 32, 8) == pytest.approx(
        0.001
    )  # 0.5 us of arithmetic, 1 us of reading


def test_each_format_has_its_own_arithmetic_and_bytes() -> None:
    assert roofline_ms([Product(1000, "int8-dynamic")], 0, PEAKS, 1, 8) == pytest.approx(0.004)
    memory_bound = replace(PEAKS, gops={"fp32": 1e6})
    for scheme, microseconds in (
        ("fp32", 1.0),
        ("fp16", 0.5),
        ("bf16", 0.5),
        ("int8-dynamic", 0.25),
        ("int8-static", 0.25),
        ("int8-weights", 0.25),
        ("int4-weights", 0.125),
    ):
        assert roofline_ms([Product(1000, scheme)], 0, memory_bound, 1, 1) == pytest.approx(
            microseconds / 1000
        )


def test_a_format_without_a_peak_computes_as_fp32() -> None:
    assert roofline_ms([Product(1000, "int4-weights")], 0, PEAKS, 1, 8) == pytest.approx(0.016)


def test_products_are_summed() -> None:
    products = [Product(1000, "fp32"), Product(500, "int8-dynamic"), Product(1000, "fp32")]
    assert roofline_ms(products, 5, PEAKS, 1, 8) == pytest.approx(0.016 + 0.002 + 0.016 + 0.05)


class Exported:
    """Model folders of ``tiny_model`` cut and quantized, and their linear layers."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.model, self.family, self.folder = (
            load_classifier(str(source), None),
            family_of("bert"),
            folder,
        )
        self.full = self.family.structure(self.model)
        tokens = np.random.default_rng(0).integers(5, 500, (4, 8))
        ones = np.ones((4, 8), np.int64)
        self.calibration = [
            Batch({"input_ids": tokens, "token_type_ids": 0 * ones, "attention_mask": ones})
        ]
        (folder / "tokenizer").mkdir()

    def __call__(
        self, name: str, structure: Structure | None = None, **quantization: Any
    ) -> tuple[Path, Counter[int]]:
        structure = structure or self.full
        cut = self.family.cut(self.model, structure)
        candidate = SETTINGS.candidate(
            {f"quantization.{key}": value for key, value in quantization.items()}
        )
        export_model(
            cut,
            structure,
            candidate,
            self.folder / name,
            self.calibration,
            self.folder / "tokenizer",
        )
        linear = [module for module in cut.modules() if isinstance(module, nn.Linear)]
        return self.folder / name, Counter(module.weight.numel() for module in linear)


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tiny_model, tmp_path_factory.mktemp("exported"))


UNEVEN = Structure(
    (Layer(0, (0, 2), tuple(range(10))), Layer(2, (), tuple(range(64))), Layer(3, (1,), ()))
)
FORMATS: Mapping[str, str] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "fp32",  # what the ONNX file holds
    "int8-dynamic": "int8-dynamic",
    "int8-static": "int8-static",
    "int8-weights": "int8-weights",
    "int4-weights": "int4-weights",
}


@pytest.mark.parametrize("scheme", FORMATS)
@pytest.mark.parametrize("structure", [None, UNEVEN], ids=["full", "uneven"])
def test_every_weight_of_a_linear_layer_is_counted_in_its_format(
    exported: Exported, scheme: str, structure: Structure | None
) -> None:
    folder, linear = exported(f"{scheme}-{structure is None}", structure, scheme=scheme)
    products, operators = operations(folder / "model.onnx")
    assert Counter(product.weights for product in products) == linear
    assert {product.scheme for product in products} == {FORMATS[scheme]}
    assert operators > len(products)


@pytest.mark.parametrize(
    ("scheme", "more"),
    [
        ("int8-dynamic", "fp32"),
        ("int8-static", "fp32"),
        ("int8-weights", "fp32"),
        ("int4-weights", "int8-weights"),
    ],
)
def test_spared_layers_are_counted_in_theirs(exported: Exported, scheme: str, more: str) -> None:
    folder, linear = exported(f"{scheme}-spared", scheme=scheme, spared="ends")
    products, _ = operations(folder / "model.onnx")
    assert Counter(product.weights for product in products) == linear
    per_layer = 4 * 32 * 32 + 2 * 32 * 64
    assert sum(product.weights for product in products if product.scheme == more) == 2 * per_layer
    assert (
        sum(product.weights for product in products if product.scheme == scheme)
        == 2 * per_layer + 32 * 32 + 2 * 32
    )


@pytest.mark.parametrize("scheme", FORMATS)
def test_attention_is_as_wide_as_the_heads_that_are_left(exported: Exported, scheme: str) -> None:
    """Three heads of 8 in the layers of ``UNEVEN``, 16 in all of them."""
    for structure, heads in ((None, 16), (UNEVEN, 3)):
        folder, _ = exported(f"attending-{scheme}-{heads}", structure, scheme=scheme)
        assert attention(folder / "model.onnx") == Attention(8 * heads, 0)


def test_the_number_of_operators_grows_with_depth(exported: Exported) -> None:
    counts = []
    for depth in (1, 2, 3, 4):
        folder, _ = exported(f"depth-{depth}", Structure(exported.full.layers[:depth]))
        counts.append(operations(folder / "model.onnx")[1])
    steps = set(np.diff(counts).tolist())
    assert len(steps) == 1 and steps.pop() > 10  # the same operators in every layer


def pi(**change: Any) -> HardwareProfile:
    return replace(HardwareProfile.load(PI), **change)


def test_an_estimate_by_hand(exported: Exported) -> None:
    """Of the whole tiny model in fp32, at the two lengths of a workload and their mean."""
    folder, linear = exported("by-hand")
    _, operators = operations(folder / "model.onnx")
    weights = 4 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32 + 2 * 32
    assert sum(count * times for count, times in linear.items()) == weights
    profile = pi(batch_size=3)
    assert profile.peaks is not None
    [timing] = DatasheetDevice(profile, [10, 30]).time(folder, [folder], final=True)[1]
    attending = 4 * 4 * 32  # of each pair of tokens, in all layers
    arithmetic = [
        3 * (2 * weights * length + attending * length**2) / (38.4e9 * 0.5) for length in (10, 30)
    ]
    expected = 1e3 * (operators * 5e-6 + sum(arithmetic) / 2)
    latency = timing.latency_ms
    assert latency.value == pytest.approx(expected)
    assert (latency.basis, latency.n, latency.p90, latency.slowest) == (
        "datasheet",
        0,
        latency.value,
        latency.value,
    )
    assert latency.interval == (latency.value, latency.value)
    assert (timing.speedup, timing.speedup_interval, timing.precision) == (1.0, (1.0, 1.0), "fp32")
    assert (timing.wall_ms, timing.cpu_ms, timing.energy_mj, timing.disturbed) == (
        None,
        None,
        None,
        False,
    )


def test_deeper_is_slower_and_int8_faster_where_the_peaks_say_so(exported: Exported) -> None:
    half, _ = exported("half", Structure(exported.full.layers[:2]))
    whole, _ = exported("whole")
    int8, _ = exported("int8", scheme="int8-weights")
    device = DatasheetDevice(pi(batch_size=64), [64])
    baseline, [shallow, same, quantized] = device.time(whole, [half, whole, int8], final=False)
    assert baseline == same
    assert 1.5 < shallow.speedup < 2.0
    assert shallow.speedup == pytest.approx(baseline.latency_ms.value / shallow.latency_ms.value)
    # attention stays in fp32
    assert 1.8 < quantized.speedup < 4 and quantized.precision == "int8-weights"
    peaks = pi().peaks
    assert peaks is not None
    even = replace(peaks, gops={"fp32": 38.4, "int8-weights": 38.4})
    _, [unhurried] = DatasheetDevice(pi(batch_size=64, peaks=even), [64]).time(
        whole, [int8], final=False
    )
    assert unhurried.speedup <= 1.0


def test_a_gpu_computes_in_its_own_precision(exported: Exported) -> None:
    """torch-cuda has no int8, and what is exported in fp32 is computed in it whatever else the
    profile offers."""
    whole, _ = exported("gpu-whole")
    int8, _ = exported("gpu-int8", scheme="int8-dynamic")
    bf16, _ = exported("gpu-bf16", scheme="bf16")
    profile = HardwareProfile.load("gpu-h200")
    baseline, [a, b, c] = DatasheetDevice(profile, [32]).time(
        whole, [whole, int8, bf16], final=False
    )
    assert [timing.precision for timing in (baseline, a, b, c)] == ["fp32", "fp32", "bf16", "bf16"]
    narrow = DatasheetDevice(replace(profile, precisions=("bf16",)), [32])
    baseline, [a, b] = narrow.time(whole, [whole, int8], final=False)
    assert (baseline.precision, a.precision, b.precision) == ("fp32", "fp32", "bf16")


def test_a_model_alone_is_estimated_in_its_own_format(exported: Exported) -> None:
    """As ``autocompress measure`` does."""
    int8, _ = exported("alone-int8", scheme="int8-dynamic")
    bf16, _ = exported("alone-bf16", scheme="bf16")
    gpu = HardwareProfile.load("gpu-h200")
    assert measure_latency(int8, pi()).precision == "int8-dynamic"
    assert measure_latency(bf16, pi()).precision == "fp32"
    assert [measure_latency(folder, gpu).precision for folder in (int8, bf16)] == ["bf16", "bf16"]


@pytest.mark.parametrize("name", [PI, "gpu-h200", "edge-jetson-orin-nano"])
def test_any_model_can_be_estimated(exported: Exported, tiny_model: Path, name: str) -> None:
    """An exported folder, a file of it, a folder of transformers."""
    folder, _ = exported("any")
    profile = HardwareProfile.load(name)
    timings = [
        measure_latency(model, profile) for model in (folder, folder / "model.onnx", tiny_model)
    ]
    assert len({timing.latency_ms.value for timing in timings}) == 1
    assert {timing.precision for timing in timings} == {"fp32"}


def test_bf16_without_a_gpu_is_what_the_file_holds(exported: Exported) -> None:
    """onnxruntime has no bf16 for CPUs: the file is fp32, its estimate is of fp32, and so is what
    it says."""
    whole, _ = exported("cpu-whole")
    bf16, _ = exported("cpu-bf16", scheme="bf16")
    _, [timing] = DatasheetDevice(pi(precisions=("fp32", "bf16")), [32]).time(
        whole, [bf16], final=False
    )
    assert timing.speedup == pytest.approx(1.0)
    assert timing.precision == "fp32"


def test_memory_counts_the_embedding_too(exported: Exported) -> None:
    """A limit of memory is checked against it, and most of a small model is its embedding: 30522 *
    32 weights."""
    whole, linear = exported("memory")
    [timing] = DatasheetDevice(pi(), [32]).time(whole, [whole], final=False)[1]
    products = 4 * sum(count * times for count, times in linear.items())
    assert timing.memory_bytes is None or timing.memory_bytes >= products + 4 * 30522 * 32


def test_a_datasheet_device_answers_as_this_machine_does(exported: Exported) -> None:
    device = connect(pi(), [32])
    assert isinstance(device, DatasheetDevice)
    assert device.fingerprint == {"source": pi().source, "date": "2026-11-20"}
    whole, _ = exported("answers")
    batch = dict(exported.calibration[0].inputs)
    assert device.predict(whole, [batch, batch]).shape == (8, 2)
    assert device.answers_like == "local onnxruntime-cpu"
    device.close()


# --------------------------------------------------------------------------------------------------
# -
# What a user sees of an estimate


SPACE = {"layers": {"keep": [1.0, 0.5]}, "quantization": {"scheme": ["fp32", "int8-dynamic"]}}


@pytest.fixture(scope="module")
def estimated(
    tiny_model: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchResult:
    out = tmp_path_factory.mktemp("runs") / "estimated"
    return search(tiny_model, data_file, PI, SearchSpace.from_mapping("test", SPACE), out, trials=3)


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status in (0, 1)
    return printed.out + printed.err


def assert_estimated(text: str) -> None:
    """Every latency and speedup carries a tilde, the word stands there, and nothing claims to be
    measured."""
    figures = re.findall(r"(~?)\b\d[\d.e-]* ?(?:ms|x)\b", text)
    assert figures, text
    assert set(figures) == {"~"}, text
    assert "estimate" in text
    assert not re.search(r"\bmeasured\b|\bmedian\b|rounds|p90", text), text


def test_the_files_say_that_it_is_an_estimate(estimated: SearchResult) -> None:
    for name in ("front.json", "events.jsonl"):
        assert '"measured"' not in (estimated.run / name).read_text()
    assert estimated.front.estimated and estimated.front.members
    assert estimated.front.hardware["basis"] == "datasheet"
    for trial in estimated.trials:
        latency = trial.scores[PI].timing.latency_ms
        assert (latency.basis, latency.n) == ("datasheet", 0)
    for member in (estimated.front.baseline, *estimated.front.members):
        assert (member.latency_ms.basis, member.latency_ms.n) == ("datasheet", 0)
        facts = json.loads((estimated.run / member.path / "autocompress.json").read_text())
        assert facts["scores"][PI]["timing"]["latency_ms"]["basis"] == "datasheet"


def test_front_and_pick_say_so(estimated: SearchResult, capsys: pytest.CaptureFixture[str]) -> None:
    table = shown(capsys, "front", estimated.run)
    assert "latencies estimated from a datasheet" in table
    rows = [line for line in table.splitlines() if re.match(r" *t\d+ +~", line)]
    assert len(rows) == len({"t000", *(member.id for member in estimated.front.members)})
    assert all(row.count("~") == 2 for row in rows)
    assert not re.search(r"\bmeasured\b", table)
    assert_estimated(shown(capsys, "pick", estimated.run, "--min-quality", "0.01"))
    for output in (
        shown(capsys, "front", estimated.run, "--json"),
        shown(capsys, "pick", estimated.run, "--min-quality", "0.01", "--json"),
    ):
        assert '"basis": "datasheet"' in output and '"basis": "measured"' not in output


def test_export_and_measure_say_so(
    estimated: SearchResult, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert_estimated(
        shown(capsys, "export", estimated.run, "--min-quality", "0.01", "--out", tmp_path / "model")
    )
    assert_estimated(shown(capsys, "measure", tmp_path / "model", "--hardware", PI))
    answer = json.loads(shown(capsys, "measure", tmp_path / "model", "--hardware", PI, "--json"))
    assert (answer["timing"]["latency_ms"]["basis"], answer["timing"]["latency_ms"]["n"]) == (
        "datasheet",
        0,
    )


def test_the_report_says_so(estimated: SearchResult) -> None:
    page = (estimated.run / "report.html").read_text(encoding="utf-8")
    text = re.sub(
        r"<style>.*?</style>",
        " ",
        re.sub(r"<script.*?</script>", " ", page, flags=re.DOTALL),
        flags=re.DOTALL,
    )
    assert "Latencies are ESTIMATES from published peaks" in text
    assert "BCM2712" in text and "our assumptions" in text
    assert "<th>ms (estimated)</th>" in text
    assert not re.search(
        r"\bmeasured\b|\bmedian\b(?!</dd>)", re.sub(r"<dl>.*?</dl>", "", text, flags=re.DOTALL)
    )
    cells = re.findall(r"<td>(~?)\d+\.\d\dx?</td>", re.sub(r"<td>-?0\.\d{4}</td>", "", text))
    assert cells.count("~") >= 2 * len(estimated.front.members)
    assert '"estimated": true' in page  # the axes get their tildes from this


def test_figures_in_the_reports_plots_carry_a_tilde(estimated: SearchResult) -> None:
    """What a pointer on a dot shows."""
    page = (estimated.run / "report.html").read_text(encoding="utf-8")
    texts = re.findall(r'"text": "([^"]*) ms, ([^"]*)x"', page)
    assert len(texts) > len(estimated.front.members)
    assert all(latency[0] == speedup[0] == "~" for latency, speedup in texts)


def test_a_refusal_of_pick_says_so(
    estimated: SearchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "pick", estimated.run, "--min-speedup", "1000x")
    assert_estimated(text)


def test_reasons_and_the_accuracy_of_tables_say_so(
    estimated: SearchResult,
    exported: Exported,
    tiny_model: Path,
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both of candidates refused by the table and of those over budget once estimated."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    space = tmp_path / "space.toml"
    space.write_text('[layers]\nkeep = [0.75, 0.5]\n[quantization]\nscheme = ["fp32"]\n')
    whole, three, two = (
        exported(f"of-{depth}", Structure(exported.full.layers[:depth]))[0] for depth in (4, 3, 2)
    )
    device = DatasheetDevice(pi(), estimated.front.hardware["lengths"])
    slow, fast = (timing.speedup for timing in device.time(whole, [three, two], final=False)[1])
    given = {"--model": tiny_model, "--task": "text-classification", "--data": data_file}
    given |= {"--hardware": PI, "--space": space, "--trials": 2}
    words = [word for pair in given.items() for word in pair]
    for name, limit in (("close", slow * 1.01), ("far", fast * 0.99)):
        out = tmp_path / name
        text = shown(capsys, "search", *words, "--min-speedup", f"{limit}x", "--out", out)
        [reason] = [trial.reason for trial in Run(out).trials() if trial.state == "over-budget"]
        assert reason is not None
        assert re.search(r"~\d[\d.]* ms", reason), reason
        lines = [line for line in text.splitlines() if line.startswith("latency foretold")]
        assert lines and all("estimate" in line for line in lines), text


def test_a_profile_of_another_length_is_estimated_anew(
    estimated: SearchResult, tmp_path: Path
) -> None:
    """Of the same name as the one that the model was searched for."""
    (tmp_path / f"{PI}.toml").write_text(f'extends = "{PI}"\nsequence_length = 64\n')
    folder = estimated.run / "models" / "t000"
    short = measure_latency(folder, HardwareProfile.load(PI))
    long = measure_latency(folder, HardwareProfile.load(str(tmp_path / f"{PI}.toml")))
    assert short.latency_ms.value == pytest.approx(estimated.front.baseline.latency_ms.value)
    assert long.latency_ms.value > short.latency_ms.value


def test_a_datasheet_needs_a_source_a_date_and_peaks() -> None:
    given: dict[str, Any] = {
        "description": "x",
        "class": "edge",
        "runtime": "onnxruntime-cpu",
        "batch_size": 1,
        "sequence_length": 32,
        "basis": "datasheet",
        "source": "a datasheet",
        "date": "2026-01-01",
        "peaks": {
            "gops": {"fp32": 1.0},
            "memory_gb_per_s": 1.0,
            "overhead_us": 1.0,
            "efficiency": 0.5,
        },
    }
    assert HardwareProfile.from_mapping("x", given).estimated
    for key in ("source", "date", "peaks"):
        with pytest.raises(UserError, match="datasheet needs peaks, source and date"):
            HardwareProfile.from_mapping("x", {k: v for k, v in given.items() if k != key})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no graph at all", "{file} is no ONNX file"),
        (b"", "{file} is no ONNX file"),
        (b"\x08\x08", "{file} is no ONNX file"),
    ],
)
@pytest.mark.parametrize("name", [PI, "gpu-h200"])
def test_garbage_is_refused_in_one_line(
    content: bytes, reason: str, name: str, tmp_path: Path
) -> None:
    """Also what reads as a model without a graph."""
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    message = f"{file} cannot be timed: {reason.format(file=file)}"
    for model in (file, tmp_path):
        with pytest.raises(
            UserError, match="^" + re.escape(message.replace(str(file), str(model), 1)) + "$"
        ):
            measure_latency(model, HardwareProfile.load(name))


def test_a_gpu_holds_the_weights_in_its_own_precision(exported: Exported) -> None:
    """Of what the folder holds in fp32; other runtimes run the file."""
    whole, _ = exported("held-whole")
    bf16, _ = exported("held-bf16", scheme="bf16")
    gpu = DatasheetDevice(HardwareProfile.load("gpu-h200"), [8])
    baseline, [other] = gpu.time(whole, [bf16], final=False)
    assert baseline.weight_bytes == (whole / "model.safetensors").stat().st_size
    assert other.weight_bytes == round((bf16 / "model.safetensors").stat().st_size / 2)
    assert DatasheetDevice(pi(), [8]).time(whole, [bf16], final=False)[0].weight_bytes is None

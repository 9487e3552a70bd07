"""The model card of an exported folder: what it was made from, its figures with their errors, how
to run it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.metrics import Metric
from autocompress.scores import Latency, Quality
from autocompress.structure import describe_sizes

if TYPE_CHECKING:
    from autocompress.pareto import Front, Member

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_TAGS = ["onnx", "onnxruntime", "autocompress"]
_PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "LMHeadModel": "text-generation",
    "ForCausalLM": "text-generation",
}
"""Endings of classes -> what the hub and Optimum call the task."""
_EXAMPLES = {
    "text-classification": """\
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime reports its use to Microsoft

import onnxruntime
from tokenizers import Tokenizer

folder, text = NAME, "a gripping, beautifully acted film"
encoded = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text)
values = {
    "input_ids": encoded.ids,
    "token_type_ids": encoded.type_ids,
    "attention_mask": encoded.attention_mask,
}
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
[logits] = session.run(None, {item.name: [values[item.name]] for item in session.get_inputs()})
print(logits.argmax(), logits)
""",
    "text-generation": """\
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime reports its use to Microsoft

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, text, count = NAME, "The film begins", 40
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.no_padding()
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
past = [item for item in session.get_inputs() if item.name.startswith("past_key_values")]
cache = [np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32) for item in past]
ids = read = tokenizer.encode(text).ids
for _ in range(count):
    feed = {"input_ids": [read], "attention_mask": [[1] * len(ids)]}
    feed |= {item.name: value for item, value in zip(past, cache, strict=True)}
    logits, *cache = session.run(None, feed)
    read = [int(logits[0, -1].argmax())]
    ids = ids + read
print(tokenizer.decode(ids))
""",
}
_IN_OPTIMUM = {
    "text-classification": """\
from optimum.onnxruntime import pipeline

print(pipeline("text-classification", NAME)("a gripping, beautifully acted film"))
""",
    "text-generation": """\
from optimum.onnxruntime import pipeline

print(pipeline("text-generation", NAME)("The film begins", max_new_tokens=40))
""",
}


def text(
    front: Front, member: Member, run: dict[str, Any], config: dict[str, Any], name: str
) -> str:
    """A README.md in Markdown, its facts for the hub ahead of it.

    Args:
        run: ``run.json``.
        config: of the model that it was made from.
        name: of the folder.
    """
    source, task = str(run["inputs"].get("model")), run["inputs"].get("task")
    data = _named(str(run.get("data", {}).get("source")))
    made_by = " ".join(config.get("architectures", ()))
    pipeline = next((p for end, p in _PIPELINES.items() if made_by.endswith(end)), None)
    lines = [
        *_for_the_hub(source, pipeline),
        f"# {name}",
        "",
        f"Made from {_named(source)} by autocompress: {describe_sizes(member.sizes)}.",
        "",
        f"- Task: {task}",
        f"- Data: {data}",
        f"- Device: {_device(front, run)}",
        "",
        *_figures(front, member),
        "",
        *([f"Judge by: {'; '.join(front.notes)}.", ""] if front.notes else []),
        "| setting | value |",
        "| --- | --- |",
        *[f"| `{key}` | `{json.dumps(value)}` |" for key, value in member.candidate.items()],
        "",
        "Settings that are not named have their defaults. `autocompress.json` holds all that was",
        "measured, versions and hashes.",
        *_how_to_run(front, member, pipeline, name),
    ]
    return "\n".join(lines) + "\n"


def _for_the_hub(source: str, pipeline: str | None) -> list[str]:
    own = _facts_of(source)
    facts = {
        "base_model": source if _is_hub_id(source) else own.get("base_model"),
        "license": own.get("license"),
        "pipeline_tag": pipeline,
        "tags": _TAGS,
    }
    known = [f"{key}: {json.dumps(value)}" for key, value in facts.items() if value]
    return ["---", *known, "---", ""]


def _facts_of(source: str) -> dict[str, Any]:
    """What the card of a model says for the hub, where it lies in its folder or the hub's cache."""
    from huggingface_hub import metadata_load, try_to_load_from_cache
    from yaml import YAMLError

    file: Any = Path(source) / "README.md"
    if _is_hub_id(source):
        file = try_to_load_from_cache(source, "README.md")
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    try:
        return metadata_load(file) or {}
    except (ValueError, YAMLError):  # another's card, which says nothing then
        return {}


def _is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def _named(source: str) -> str:
    """Without the folders of this machine."""
    hub_id, _, _ = source.partition(":")
    return source if _is_hub_id(hub_id) else Path(source).name


def _device(front: Front, run: dict[str, Any]) -> str:
    name = front.hardware["name"]
    known = run["inputs"].get("devices", {}).get(name, {})
    profile = [name, front.hardware.get("description"), known.get("cpu")]
    estimated = ["latencies estimated from a datasheet"] if front.estimated else []
    return "; ".join([*filter(None, profile), *estimated])


def _figures(front: Front, member: Member) -> list[str]:
    scale, uncut, quality, latency = front.scale, front.baseline, member.quality, member.latency_ms
    split = "validation" if quality.test is None else "test"
    drop = f"{quality.drop_reported:.2f} ± {front.error_text(member)}"
    low, high = member.timing.speedup_interval
    speedup = f"{latency.about}{member.speedup:.2f}x ({low:.2f} to {high:.2f})"
    rows = [
        ("", "this model", "the one it was made from, fp32"),
        ("---", "---", "---"),
        (f"{scale.name} on {split}", *(_score(scale, m.quality, split) for m in (member, uncut))),
        (f"{scale.lost}, {scale.unit}", drop, ""),
        ("latency", _latency(latency), _latency(uncut.latency_ms)),
        ("speedup", speedup, ""),
        ("model.onnx", *(f"{m.weight_bytes / 1e6:.1f} MB" for m in (member, uncut))),
    ]
    table = [f"| {' | '.join(row)} |" for row in rows]
    return [*table, "", "± is one standard error; of the drop it is paired, on the same examples."]


def _score(scale: Metric, quality: Quality, split: str) -> str:
    score, stderr = (
        (quality.validation, quality.validation_stderr)
        if split == "validation"
        else (quality.test, quality.test_stderr)
    )
    shown = "unknown" if score is None else scale.text(score)
    return shown if stderr is None else f"{shown} ± {scale.text(stderr)}"


def _latency(latency: Latency) -> str:
    low, high = latency.interval
    if latency.basis != "measured":
        return f"~{latency.value:.3g} ms"
    return f"{latency.value:.3g} ms ({100 * latency.confidence:g} % {low:.3g} to {high:.3g})"


def _how_to_run(front: Front, member: Member, pipeline: str | None, name: str) -> list[str]:
    if pipeline is None:
        return []
    lines = ["", "## Run it", "", "With `onnxruntime` and `tokenizers` alone:", ""]
    lines += [*_code(_EXAMPLES[pipeline], name), ""]
    if pipeline == "text-generation" and not _caches_alike(front, member):
        return [*lines, "Optimum does not generate with it: its layers differ in their heads."]
    lines += ["In Optimum (`pip install optimum-onnx[onnxruntime]`):", ""]
    return lines + _code(_IN_OPTIMUM[pipeline], name)


def _code(example: str, name: str) -> list[str]:
    return ["```python", example.replace("NAME", json.dumps(name)).rstrip(), "```"]


def _caches_alike(front: Front, member: Member) -> bool:
    """Whether each layer has all of its heads or none, and so the cache that its config tells."""
    return {*member.sizes["heads"]} <= {0, *front.baseline.sizes["heads"]}

"""Every key of a hardware profile: a wrong type and a value out of range are refused in one line
that names the key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress import HardwareProfile, UserError
from autocompress.formats import FORMATS
from autocompress.hardware.profile import CLASSES, PHASES, REGIMES, RUNTIMES, STATISTICS, Peaks

CPU: dict[str, Any] = {
    "description": "a CPU",
    "class": "cpu",
    "runtime": "onnxruntime-cpu",
    "batch_size": 1,
    "sequence_length": 32,
}
PEAKS: dict[str, Any] = {
    "gops": {"fp32": 10.0},
    "memory_gb_per_s": 5.0,
    "overhead_us": 1.0,
    "efficiency": 0.5,
}
DATASHEET = CPU | {
    "class": "edge",
    "basis": "datasheet",
    "source": "a datasheet",
    "date": "2026-01-01",
    "peaks": PEAKS,
}
BOARD = CPU | {"class": "edge", "location": "ssh://board"}

KEYS = {
    "class" if f.name == "device_class" else f.name for f in dataclasses.fields(HardwareProfile)
} - {"name"}
PEAK_KEYS = {f.name for f in dataclasses.fields(Peaks)}

text = st.text(max_size=8)
whole = st.integers(-(10**9), 10**9)
number = st.floats(allow_nan=False, allow_infinity=False)
anything = st.one_of(
    st.booleans(),
    whole,
    number,
    text,
    st.lists(text, max_size=2),
    st.dictionaries(text, text, max_size=2),
)
ALLOWED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        (
            "description",
            "class",
            "runtime",
            "location",
            "python",
            "ssh_config",
            "regime",
            "statistic",
            "basis",
        ),
        (str,),
    ),
    **dict.fromkeys(("source", "date"), (str,)),
    **dict.fromkeys(("threads", "batch_size"), (int,)),
    "sequence_length": (int, str),
    **dict.fromkeys(("prompt_length", "context_length", "generated_tokens"), (int,)),
    "phase": (str,),
    "cuda_graphs": (bool,),
    "precisions": (list,),
    **dict.fromkeys(
        ("confidence", "target_precision", "trial_seconds", "final_seconds", "memory_limit_mb"),
        (int, float),
    ),
    "fingerprint": (dict,),
    "peaks": (dict,),
}


def of_another_type(key: str) -> st.SearchStrategy[Any]:
    """Any value but those that TOML would have of the right type; true is no number."""
    allowed = ALLOWED[key]
    return anything.filter(
        lambda value: (
            not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        )
    )


def outside(low: float, high: float) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.floats(max_value=low, exclude_max=True),
        st.floats(min_value=high, exclude_min=True),
        st.just(float("nan")),
    )


def whole_outside(low: int, high: int) -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(max_value=low - 1), st.integers(min_value=high + 1))


def none_of(*names: str) -> st.SearchStrategy[Any]:
    return text.filter(lambda value: value not in names)


OUT_OF_RANGE: dict[str, st.SearchStrategy[Any]] = {
    "class": none_of(*CLASSES),
    "runtime": none_of(*RUNTIMES),
    "location": text.filter(
        lambda value: value != "local" and not value.startswith(("ssh://", "cmd:"))
    ),
    "python": none_of("python3"),  # of this machine
    "ssh_config": text.filter(bool),  # likewise
    "threads": whole_outside(0, 1024),
    "batch_size": whole_outside(1, 4096),
    "sequence_length": st.one_of(whole_outside(1, 100_000), none_of("task")),
    **dict.fromkeys(
        ("prompt_length", "context_length", "generated_tokens"), whole_outside(1, 100_000)
    ),
    "phase": none_of(*PHASES),
    "cuda_graphs": st.just(True),  # of onnxruntime
    "precisions": st.one_of(
        st.just([]),
        st.lists(none_of(*FORMATS), min_size=1, max_size=3),
        st.lists(st.sampled_from(list(FORMATS)), min_size=1, max_size=3).map(
            lambda names: [*names, names[0]]
        ),
    ),
    "memory_limit_mb": st.one_of(
        st.floats(max_value=0), st.just(float("nan")), st.just(float("inf"))
    ),
    "regime": none_of(*REGIMES),
    "statistic": none_of(*STATISTICS),
    "confidence": outside(0.5, 0.999),
    "target_precision": outside(0.001, 0.5),
    "trial_seconds": outside(0.1, 600),
    "final_seconds": outside(0.1, 3600),
    "basis": none_of("measured", "datasheet"),
    "peaks": st.just(PEAKS),  # of a measured device
}
FREE = {"description", "source", "date", "fingerprint"}
"""Keys that may have any text, or any table."""


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        HardwareProfile.from_mapping("mine", values, "mine.toml")
    message = str(caught.value)
    assert "mine" in message and "\n" not in message
    return message


def names(message: str, key: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", message) is not None


def test_these_are_all_the_keys() -> None:
    assert ALLOWED.keys() == KEYS
    assert OUT_OF_RANGE.keys() | FREE == KEYS


@pytest.mark.parametrize("key", sorted(KEYS))
@given(data=st.data())
@settings(deadline=None)
def test_a_wrong_type_names_the_key(key: str, data: st.DataObject) -> None:
    assert names(refusal(CPU | {key: data.draw(of_another_type(key))}), key)


@pytest.mark.parametrize("key", sorted(OUT_OF_RANGE))
@given(data=st.data())
@settings(deadline=None)
def test_a_value_out_of_range_names_the_key(key: str, data: st.DataObject) -> None:
    assert names(refusal(CPU | {key: data.draw(OUT_OF_RANGE[key])}), key)


@pytest.mark.parametrize("key", sorted(CPU))
def test_a_missing_key_is_named(key: str) -> None:
    assert (
        refusal({name: value for name, value in CPU.items() if name != key})
        == f"mine.toml: missing key {key!r}"
    )


@given(st.text(min_size=1).filter(lambda key: key not in KEYS))
@settings(deadline=None)
def test_an_unknown_key_is_named(key: str) -> None:
    with pytest.raises(UserError) as caught:
        HardwareProfile.from_mapping("mine", CPU | {key: 1}, "mine.toml")
    assert f"unknown key {key!r}" in str(caught.value)


@pytest.mark.parametrize("key", sorted(PEAK_KEYS))
@given(data=st.data())
@settings(deadline=None)
def test_a_peak_of_a_wrong_type_is_named(key: str, data: st.DataObject) -> None:
    allowed = (dict,) if key == "gops" else (int, float)
    wrong = data.draw(
        anything.filter(lambda value: isinstance(value, bool) or not isinstance(value, allowed))
    )
    assert names(refusal(DATASHEET | {"peaks": PEAKS | {key: wrong}}), key)


@pytest.mark.parametrize("key", sorted(PEAK_KEYS - {"gops"}))
@given(data=st.data())
@settings(deadline=None)
def test_a_peak_out_of_range_is_named(key: str, data: st.DataObject) -> None:
    most = [st.floats(min_value=1.0, exclude_min=True)] if key == "efficiency" else []
    wrong = data.draw(
        st.one_of(st.floats(max_value=0), st.just(float("inf")), st.just(float("nan")), *most)
    )
    assert names(refusal(DATASHEET | {"peaks": PEAKS | {key: wrong}}), key)


@pytest.mark.parametrize(
    ("gops", "named"),
    [
        ({}, "gops"),
        ({"int8-dynamic": 3.0}, "fp32"),
        ({"fp32": 0.0}, "fp32"),
        ({"fp32": 1.0, "int8-static": float("inf")}, "int8-static"),
        ({"fp32": 1.0, "int3": 2.0}, "int3"),
        ({"fp32": True}, "gops"),
        ({"fp32": "fast"}, "gops"),
        ({"fp32": 1.0, "memory_gb_per_s": 1.0}, "memory_gb_per_s"),
    ],
)
def test_peaks_by_format_are_checked(gops: dict[str, Any], named: str) -> None:
    assert names(refusal(DATASHEET | {"peaks": PEAKS | {"gops": gops}}), named)


def test_an_unknown_or_a_missing_peak_is_named() -> None:
    assert "unknown key 'gflops'" in refusal(DATASHEET | {"peaks": PEAKS | {"gflops": 1.0}})
    for key in PEAKS:
        assert f"missing key {key!r}" in refusal(
            DATASHEET | {"peaks": {k: v for k, v in PEAKS.items() if k != key}}
        )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (CPU | {"class": "gpu"}, "class"),
        (CPU | {"runtime": "torch-cuda"}, "class"),
        (CPU | {"class": "gpu", "runtime": "torch-cuda", "threads": 4}, "threads"),
        (CPU | {"class": "gpu", "runtime": "onnxruntime-cuda", "cuda_graphs": True}, "cuda_graphs"),
        (CPU | {"class": "edge", "runtime": "torch-cuda", "location": "ssh://board"}, "torch-cuda"),
        (
            CPU | {"class": "gpu", "runtime": "torch-cuda", "precisions": ["int8-dynamic"]},
            "fp32, fp16 and bf16",
        ),
        (BOARD | {"threads": 0}, "threads"),
        (BOARD | {"location": "cmd:adb shell", "ssh_config": "config"}, "ssh_config"),
        (DATASHEET | {"location": "ssh://board"}, "location"),
        (DATASHEET | {"fingerprint": {"cpu": "x"}}, "fingerprint"),
        (DATASHEET | {"threads": 0}, "threads"),
        (DATASHEET | {"source": ""}, "source"),
        (DATASHEET | {"date": ""}, "date"),
        ({key: value for key, value in DATASHEET.items() if key != "peaks"}, "peaks"),
        (CPU | {"peaks": PEAKS}, "peaks"),
    ],
)
def test_keys_that_contradict_each_other_are_named(values: dict[str, Any], named: str) -> None:
    assert named in refusal(values)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "threads": st.integers(0, 1024),
            "batch_size": st.integers(1, 4096),
            "sequence_length": st.one_of(st.integers(1, 100_000), st.just("task")),
            "precisions": st.lists(st.sampled_from(list(FORMATS)), min_size=1, unique=True),
            "memory_limit_mb": st.floats(0, 1e9, exclude_min=True, exclude_max=True),
            "regime": st.sampled_from(REGIMES),
            "statistic": st.sampled_from(STATISTICS),
            "confidence": st.floats(0.5, 0.999),
            "target_precision": st.floats(0.001, 0.5),
            "trial_seconds": st.floats(0.1, 600),
            "final_seconds": st.one_of(st.integers(1, 3600), st.floats(0.1, 3600)),
            "source": text,
            "date": st.dates().map(str),
            "description": text,
        },
    )
)
@settings(deadline=None)
def test_what_is_in_range_is_taken_as_it_is(values: dict[str, Any]) -> None:
    profile = HardwareProfile.from_mapping("mine", CPU | values)
    shown = profile.as_dict()
    assert {key: shown[key] for key in values} == values
    assert shown["class"] == "cpu" and "device_class" not in shown
    again = {key: value for key, value in shown.items() if key not in ("name", "peaks")}
    assert HardwareProfile.from_mapping("mine", again) == profile  # what is shown can be read


def test_every_key_of_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'description = "base"\nclass = "edge"\nruntime = "onnxruntime-cpu"\nbatch_size = 1\nsequence_length = 32\nthreads = 2\n'  # noqa: E501
        '[fingerprint]\ncpu = "x"\ncores = 4\n'
    )
    (tmp_path / "mine.toml").write_text(
        'extends = "base.toml"\nthreads = 3\n[fingerprint]\ncpu = "y"\n'
    )
    profile = HardwareProfile.load(str(tmp_path / "mine.toml"))
    assert (profile.name, profile.description, profile.threads) == ("mine", "base", 3)
    assert dict(profile.fingerprint) == {"cpu": "y"}  # tables are replaced whole

"""``front.json``: what is written is read, and what is damaged is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import UserError
from autocompress.pareto import (
    load_front,
    load_fronts,
)
from autocompress.scores import Quality
from tests.test_pareto import FAST, FRONT, GOOD, SIZED, front, write


def test_front_json_round_trip(tmp_path: Path) -> None:
    untested = replace(GOOD, quality=Quality(0.86, 1.5, 0.7), candidate={"layers.keep": 1.0})
    measured = replace(GOOD.timing, cpu_ms=None, disturbed=True, memory_bytes=10**6, energy_mj=1.5)
    for original in (
        FRONT,
        front(),
        replace(front(FAST, untested), verified=False),
        front(replace(GOOD, timing=measured)),
        SIZED,
    ):
        write(tmp_path, original)
        assert load_front(tmp_path) == original
        assert load_fronts(tmp_path) == {"board": original}


def test_a_front_that_names_no_objectives_is_of_latency_and_quality(tmp_path: Path) -> None:
    """As written before there were others."""
    older = FRONT.as_dict()
    del older["objectives"], older["size_hypervolume"], older["hypervolume_test"]
    del older["baseline"]["quality"]["validation_stderr"]
    for member in (older["baseline"], *older["members"]):
        del member["embedding_bytes"], member["load_ms"]
    value = {"schema": 2, "fronts": [older]}
    (tmp_path / "front.json").write_text(json.dumps(value), encoding="utf-8")
    loaded = load_front(tmp_path)
    unsure = replace(FRONT.baseline.quality, validation_stderr=None)
    assert loaded == replace(FRONT, baseline=replace(FRONT.baseline, quality=unsure))
    assert (loaded.objectives, loaded.size_hypervolume) == (("latency", "quality"), None)


def test_the_fronts_of_several_devices(tmp_path: Path) -> None:
    """They stand in the order in which the search was given the devices."""
    slow, quick = front(GOOD, name="slow"), front(FAST, name="a-quick")
    write(tmp_path, slow, quick)
    assert list(load_fronts(tmp_path).items()) == [("slow", slow), ("a-quick", quick)]
    assert load_front(tmp_path) == slow
    assert load_front(tmp_path, "slow") == slow
    for name in ("a-quick", "a-quick.toml", "profiles/a-quick.toml"):
        assert load_front(tmp_path, name) == quick
    for name in ("quick", "slow.toml.toml"):
        with pytest.raises(
            UserError,
            match=re.escape(f"--hardware {name}: {tmp_path} has fronts for slow, a-quick") + "$",
        ):
            load_front(tmp_path, name)


@pytest.mark.parametrize("schema", [1, 3, "2", None])
def test_a_front_of_another_schema(tmp_path: Path, schema: Any) -> None:
    write(tmp_path, FRONT, schema=schema)
    with pytest.raises(
        UserError, match=re.escape(f"front.json: schema is {schema!r}, this version reads 2") + "$"
    ):
        load_front(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"members": [{"id": "t001"}]},
        {"members": 3},
        {"baseline": None},
        {"colour": "red"},
        {"hardware": {}},
        {"hardware": 3},
        {"members": [FAST.__dict__ | {"quality": FAST.quality.__dict__, "timing": None}]},
        {"members": [FAST.__dict__ | {"quality": None, "timing": None}]},
    ],
    ids=str,
)
def test_a_front_of_another_kind(tmp_path: Path, change: dict[str, Any]) -> None:
    value = {"schema": 2, "fronts": [FRONT.as_dict() | change]}
    (tmp_path / "front.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape("front.json is damaged: ")):
        load_front(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"schema": 2}',
        b'{"schema": 2, "fronts": 3}',
        b'{"schema": 2, "fronts": []}',
        b'"\xff"',
    ],
)
def test_a_damaged_front(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "front.json").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'front.json'} is damaged: ")):
        load_front(tmp_path)


def test_no_front(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} holds no front.json")):
        load_front(tmp_path)

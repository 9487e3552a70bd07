from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from autocompress import resources
from autocompress.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("kind", "member"),
    [
        ("search_spaces", "demo"),
        ("search_spaces/recipes", "distilgpt2"),
        ("hw_profiles", "cpu-1-thread"),
    ],
)
def test_shipped_names(kind: resources.Kind, member: str) -> None:
    assert resources.names(kind) == sorted(
        path.stem for path in (ROOT / kind).iterdir() if path.is_file()
    )
    assert resources.locate(kind, member) == ROOT / kind / f"{member}.toml"


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "größer"\n[layers]\nkeep = [1.0, 0.5]\n', encoding="utf-8")
    assert resources.locate("search_spaces", str(path)) == path
    assert resources.read_toml(path) == {"description": "größer", "layers": {"keep": [1.0, 0.5]}}


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        (
            "search_spaces",
            "dmeo",
            "unknown search space 'dmeo' (did you mean 'demo'?): give a path to a .toml file or ",
        ),
        (
            "search_spaces/recipes",
            "demo",
            "unknown recipe 'demo': give a path to a .toml file or one of adaptive-float, ",
        ),
        (
            "hw_profiles",
            "gpu",
            "unknown hardware profile 'gpu': give a path to a .toml file or one of ",
        ),
        (
            "search_spaces",
            "../hw_profiles/cpu-1-thread",
            "unknown search space '../hw_profiles/cpu-1-thread'",
        ),
        ("hw_profiles", "no/such.toml", "hardware profile file no/such.toml does not exist"),
    ],
)
def test_what_is_not_there(kind: resources.Kind, asked: str, message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        resources.locate(kind, asked)


@pytest.mark.parametrize(
    "content", [b"keep = ", b"[a]\n[a]\n", b"a = '\xff'\n"], ids=["cut", "twice", "latin-1"]
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="^" + re.escape(f"{path}: not valid TOML: ")):
        resources.read_toml(path)


def test_the_message_lists_what_there_is() -> None:
    with pytest.raises(
        UserError, match=re.escape(", ".join(resources.names("search_spaces"))) + "$"
    ):
        resources.locate("search_spaces", "dmeo")


def test_the_wheel_brings_spaces_recipes_and_profiles(tmp_path: Path) -> None:
    """Built, installed in a fresh environment beside its dependencies, and read from another
    folder."""

    def run(*command: str | Path, cwd: Path = tmp_path, **variables: str) -> str:
        environment = {
            name: value for name, value in os.environ.items() if name != "PYTHONPATH"
        } | variables
        return subprocess.run(
            command, cwd=cwd, env=environment, check=True, capture_output=True, text=True
        ).stdout

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    code = """
import autocompress
from autocompress import HardwareProfile, resources
profile = HardwareProfile.load("cpu-1-thread")
print(autocompress.__file__)
print(profile.threads, profile.batch_size, profile.sequence_length)
print(*resources.names("hw_profiles"))
print(*resources.names("search_spaces"))
print(*resources.names("search_spaces/recipes"))
"""
    dependencies = str(Path(np.__file__).parents[1])
    home, profile, profiles, spaces, recipes = run(
        python, "-c", code, PYTHONPATH=dependencies
    ).splitlines()
    assert Path(home).is_relative_to(tmp_path / "venv")
    assert profile == "1 1 32"
    assert profiles.split() == resources.names("hw_profiles")
    assert spaces.split() == resources.names("search_spaces")
    assert recipes.split() == resources.names("search_spaces/recipes")

"""What is deleted in a run folder, and where files of the user lie."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress.engine.making import Maker
from autocompress.engine.verification import keep_models
from autocompress.errors import UserError
from autocompress.files import cache_folder

Keep = Callable[[Path, Collection[str]], None]


def keep_students(folder: Path, ids: Collection[str]) -> None:
    maker: Any = SimpleNamespace(folder=folder)
    Maker.keep(maker, ids)


@pytest.fixture(params=["models", "students"])
def keeping(request: pytest.FixtureRequest) -> tuple[Keep, list[str]]:
    """What keeps, and names of three folders of its own."""
    if request.param == "models":
        return keep_models, ["t000", "t001", "t1234"]
    return keep_students, ["0" * 16, "0123456789abcdef", "f" * 16]


def test_only_what_is_ours_is_deleted(keeping: tuple[Keep, list[str]], tmp_path: Path) -> None:
    """Folders by name; no link is followed or deleted."""
    keep, [kept, gone, linked] = keeping
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    foreign = ["mine", ".git", ".mine.7.part", f"{gone}-copy", f"old-{gone}", "t01", "a" * 15]
    own = [kept, gone, f".{gone}.77.part", f".{kept}.77.old.part"]
    for path in (outside, *(folder / name for name in (*foreign, *own))):
        path.mkdir(parents=True)
        (path / "file").write_text("here")
    (folder / linked).symlink_to(outside)
    (folder / f".{gone}.78.part").write_text("a file of the user's")
    keep(folder, {kept})
    left = [*foreign, kept, linked, f".{gone}.78.part"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(left)
    assert (outside / "file").read_text() == "here"


def test_nothing_is_deleted_behind_a_link(keeping: tuple[Keep, list[str]], tmp_path: Path) -> None:
    keep, [kept, other, _] = keeping
    (tmp_path / "outside" / other).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=f"^{tmp_path}/link is a link: "):
        keep(tmp_path / "link", {kept})
    assert (tmp_path / "outside" / other).is_dir()


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("AUTOCOMPRESS_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "autocompress"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "autocompress"

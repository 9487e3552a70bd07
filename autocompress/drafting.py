"""A search space and a hardware profile for a model of one's own, commented, to be changed."""

from __future__ import annotations

import json
from pathlib import Path

from autocompress import resources
from autocompress.errors import UserError
from autocompress.hardware.profile import KEYS, HardwareProfile
from autocompress.techniques import SETTINGS


def write(folder: Path, model: str, space: str, profile: str) -> tuple[Path, Path]:
    """Writes ``space.toml`` and ``profile.toml``.

    Args:
        space: the shipped space that the file begins as.
        profile: the shipped profile that the other one extends.

    Returns:
        Their paths.

    Raises:
        UserError: one is there already.
    """
    files = folder / "space.toml", folder / "profile.toml"
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists already; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in zip(files, (_space(model, space), _profile(profile)), strict=True):
        file.write_text(text, encoding="utf-8")
    return files


def _space(model: str, name: str) -> str:
    lines = [
        f"# What a search may try on {model}: as yet the shipped space {name!r}.",
        "# A setting is one value, a list of them, or { low = ..., high = ... }; one that is left",
        "# out keeps its default. All there are: autocompress space settings",
        "# To check this file: autocompress space validate space.toml",
        "",
    ]
    section = ""
    shipped = resources.locate("search_spaces", name).read_text(encoding="utf-8").splitlines()
    corners = shipped.index("[[corners]]") if "[[corners]]" in shipped else len(shipped)
    for number, line in enumerate(shipped):
        if number == corners:
            lines.append("# Corners: candidates that are tried first.")
        if line.startswith("["):
            section = line[1:].partition("]")[0]
        setting = SETTINGS.by_name.get(f"{section}.{line.partition(' =')[0]}")
        if setting is not None:
            lines.append(f"# {setting.summary}: {setting.domain}")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _profile(name: str) -> str:
    lines = [
        "# Where and how latency is measured: as yet as under the shipped profile that is named",
        "# here. To change a key, take the # from before it. All there are, explained:",
        "# autocompress profile settings; for a board: autocompress profile new",
        "",
        f'extends = "{name}"',
        'description = "my device"',
    ]
    values = HardwareProfile.load(name).as_dict()
    for key in KEYS.values():
        if isinstance(values[key.name], int | float | str) and key.name != "description":
            lines += ["", f"# {key.summary}", f"# {key.name} = {json.dumps(values[key.name])}"]
    return "\n".join(lines) + "\n"

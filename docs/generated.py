"""The parts of these pages that the code knows: commands, settings, profiles, spaces, recipes.

python docs/generated.py        # writes them anew where they are out of date

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from autocompress import resources
from autocompress.arguments import parser
from autocompress.candidate import Setting, thaw
from autocompress.hardware.profile import KEYS, PEAK_KEYS, HardwareProfile
from autocompress.recipes import Recipe
from autocompress.search_space import SearchSpace
from autocompress.techniques import SETTINGS

DOCS = Path(__file__).resolve().parent
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def commands() -> str:
    """Every command with its options, as ``--help`` tells them."""
    return "\n\n".join(_command(words, one) for words, one in _below(parser(), "the commands"))


def _below(
    command: argparse.ArgumentParser, words: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The commands that carry something out, each with its help."""
    listed = [a for a in command._actions if isinstance(a, argparse._SubParsersAction)]
    for action in listed:
        for shown in action._choices_actions:
            yield from _below(action.choices[shown.dest], str(shown.help))
    if not listed:
        yield words, command


def _command(words: str, command: argparse.ArgumentParser) -> str:
    options = [_option(action, command) for action in command._actions if action.dest != "help"]
    told = [f"## {command.prog}", _sentence(words), command.description, "\n".join(options)]
    return "\n\n".join(filter(None, told))


def _option(action: argparse.Action, command: argparse.ArgumentParser) -> str:
    value = action.metavar or "|".join(action.choices or ()) or action.dest.upper()
    name = " ".join([*action.option_strings, *([] if action.nargs == 0 else [str(value)])])
    said = command._get_formatter()._expand_help(action) if action.help else ""
    return f"- `{name}`" + (f": {said}" if said else "")


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def settings() -> str:
    """What a search space may vary, by section."""
    by_section: dict[str, list[Setting]] = {}
    for setting in SETTINGS:
        by_section.setdefault(setting.name.partition(".")[0], []).append(setting)
    return "\n\n".join(
        "\n".join([f"### {section}", "", *map(_setting, members)])
        for section, members in by_section.items()
    )


def keys() -> str:
    """What a hardware profile may hold."""
    peaks = [replace(key, name=f"peaks.{key.name}") for key in PEAK_KEYS.values()]
    return "\n".join(
        _setting(key, required=key.required, has_default=key.has_default)
        for key in (*KEYS.values(), *peaks)
    )


def _setting(setting: Setting, *, required: bool = False, has_default: bool = True) -> str:
    default = f" = {json.dumps(thaw(setting.default))}" if has_default and not required else ""
    note = " (required)" if required else ""
    return f"- `{setting.name}{default}`{note}: {setting.summary}. Allowed: {setting.domain}."


def profiles() -> str:
    """The shipped ones."""
    rows = []
    for name in resources.names("hw_profiles"):
        profile = HardwareProfile.load(name)
        latencies = "**estimated**" if profile.estimated else "measured"
        rows.append(f"| `{name}` | {profile.description} | {latencies} |")
    return "\n".join(["| profile | what it is | latencies are |", "|---|---|---|", *rows])


def spaces() -> str:
    """The shipped ones."""
    rows = []
    for name in resources.names("search_spaces"):
        space = SearchSpace.load(name)
        counts = f"{len(space.parameters)} | {len(space.corners)}"
        rows.append(f"| `{name}` | {space.description} | {counts} |")
    return "\n".join(
        ["| space | what it searches | settings | corners |", "|---|---|---|---|", *rows]
    )


def recipes() -> str:
    """The shipped ones: paper, settings, and what stands in for what."""
    return "\n\n".join(
        _recipe(Recipe.load(name)) for name in resources.names("search_spaces/recipes")
    )


def _recipe(recipe: Recipe) -> str:
    chosen = ", ".join(
        f"`{name} = {json.dumps(thaw(value))}`" for name, value in recipe.settings.items()
    )
    lines = [
        f"### {recipe.name}",
        "",
        _sentence(recipe.description),
        "",
        f"- Paper: {recipe.paper}; section {recipe.section}.",
        f"- Settings: {chosen}.",
        *([f"- What stands in for what: {recipe.differs}."] if recipe.differs else []),
    ]
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (commands, settings, keys, profiles, spaces, recipes)
}


def pages() -> list[Path]:
    """All there are."""
    return sorted(DOCS.rglob("*.md"))


def renewed(page: str) -> str:
    """The text of a page with its parts as the code has them now."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n\n{part[3]}", page)


def main() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if renewed(text) != text:
            page.write_text(renewed(text), encoding="utf-8")
            print(f"wrote {page.relative_to(DOCS)}")


if __name__ == "__main__":
    main()

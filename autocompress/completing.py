"""Completion in a shell, from what argparse knows; the script runs no Python."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


def script(parser: argparse.ArgumentParser) -> str:
    """For bash, and zsh by its bashcompinit: commands, options, and files elsewhere."""
    name = parser.prog
    cases = "\n".join(
        f"    '{path}') echo '{' '.join(words)}';;" for path, words in _words(parser, name)
    )
    return f"""\
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_{name}_words() {{
  case "$1" in
{cases}
    *) return 1;;
  esac
}}
_{name}() {{
  local path={name} words more i
  words=$(_{name}_words "$path")
  for ((i = 1; i < COMP_CWORD; i++)); do
    more=$(_{name}_words "$path ${{COMP_WORDS[i]}}") || break
    path="$path ${{COMP_WORDS[i]}}" words=$more
  done
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _{name} {name}"""


def _words(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, list[str]]]:
    """What may follow each command, named as ``autocompress space list``."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    names = [name for action in below for name in action.choices]
    options = [word for word in parser._option_string_actions if word.startswith("--")]
    yield path, [*names, *options]
    for action in below:
        for name, command in action.choices.items():
            yield from _words(command, f"{path} {name}")

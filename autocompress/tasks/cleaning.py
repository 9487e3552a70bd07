"""Cleaning of a corpus by line, as Li et al. 2021 (arXiv:2110.08460) did before they pre-trained
truncated GPT-2 models.

The rules are those of their released code (github.com/EmYassir/gpt2_compression,
``tools/clean_text.py`` and ``tools/test_samples.py``), made for English: marks that combine with
letters, as in Hindi, count as non-letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser

WORDS_AT_EACH_END = 4
"""Lines of the same length that begin and end with the same words count as the same
(``clean_text.hash_sentence``)."""
MOST_NON_LETTERS = 0.1
"""Share of a line's characters, spaces apart, that may be no letters (``test_samples
--percent_nonalpha``)."""
FEWEST_CHARACTERS = 5
"""Of a line (``test_samples --min_length``)."""


def clean(documents: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Drop lines that repeat an earlier one of any document, hold an HTML tag, have many
    non-letters or are very short.

    Blank lines stay, two newlines in a row at most.

    Returns:
        The documents of which something is left, and how many lines and documents were dropped, by
        the first reason that applies.
    """
    report = {
        "repeated lines": 0,
        "lines with HTML": 0,
        "lines of non-letters": 0,
        "short lines": 0,
        "documents left empty": 0,
    }
    seen: set[tuple[int, str]] = set()
    kept = []
    for document in documents:
        lines = []
        for line in map(str.rstrip, document.split("\n")):
            reason = _flaw(line, seen)
            if reason is None:
                lines.append(line)
            else:
                report[reason] += 1
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
        if text:
            kept.append(text)
        else:
            report["documents left empty"] += 1
    return kept, report


def _flaw(line: str, seen: set[tuple[int, str]]) -> str | None:
    if not line:
        return None
    plain = re.sub(r"[^\w\s]", "", line)
    words = plain.split()
    key = len(plain), "".join(words[:WORDS_AT_EACH_END] + words[-WORDS_AT_EACH_END:])
    if key in seen:
        return "repeated lines"
    seen.add(key)
    if _has_html(line):
        return "lines with HTML"
    if sum(
        not (character.isalpha() or character.isspace()) for character in line
    ) > MOST_NON_LETTERS * len(line):
        return "lines of non-letters"
    return "short lines" if len(line) < FEWEST_CHARACTERS else None


class _Tags(HTMLParser):
    """The parser behind theirs, BeautifulSoup's ``html.parser``."""

    has_tag = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.has_tag = True


def _has_html(line: str) -> bool:
    if "<" not in line:
        return False
    parser = _Tags()
    try:
        parser.feed(line)
        parser.close()
    except (
        AssertionError
    ):  # how HTMLParser gives up on a malformed declaration; they drop such lines too
        return True
    return parser.has_tag

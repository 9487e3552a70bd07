"""Cleaning: each rule by hand, and real sentences stay."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from autocompress.tasks.cleaning import FEWEST_CHARACTERS, MOST_NON_LETTERS, clean

NOTHING = {
    "repeated lines": 0,
    "lines with HTML": 0,
    "lines of non-letters": 0,
    "short lines": 0,
    "documents left empty": 0,
}


def test_clean_text_stays_as_it_is() -> None:
    documents = [
        "A first line, of words.\nA second line; of more words.",
        "Another document.\n\nIts next paragraph.\nAnd its end.",
    ]
    assert clean(documents) == (documents, NOTHING)


def test_blank_lines_are_no_repeats_and_trailing_space_goes() -> None:
    kept, report = clean(["\none paragraph \n\n \t\n\nanother paragraph\n\nand a third\n\n"])
    assert kept == ["one paragraph\n\nanother paragraph\n\nand a third"]
    assert report == NOTHING


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("the film is good", "the film is good", True),
        ("the film is good", "The film is good", False),
        ("the film, is good in parts!", "the film is good in parts", True),
        (
            "one two three four A six seven eight nine",
            "one two three four B six seven eight nine",
            True,
        ),
        (
            "one two three four A six seven eight nine",
            "one two three four AB six seven eight nine",
            False,
        ),
        (
            "one two three A five six seven eight nine",
            "one two three B five six seven eight nine",
            False,
        ),
        (
            "one two three four five A seven eight nine",
            "one two three four five B seven eight nine",
            False,
        ),
    ],
    ids=[
        "equal",
        "case",
        "punctuation",
        "a word in the middle",
        "length",
        "fourth word",
        "fourth word from the end",
    ],
)
@pytest.mark.parametrize("apart", [True, False], ids=["two documents", "one document"])
def test_lines_repeat_by_length_and_outer_words(
    first: str, second: str, same: bool, apart: bool
) -> None:
    kept, report = clean([first, second] if apart else [f"{first}\n{second}"])
    assert "\n".join(kept).split("\n") == ([first] if same else [first, second])
    assert report == NOTHING | {
        "repeated lines": int(same),
        "documents left empty": int(same and apart),
    }


@pytest.mark.parametrize(
    ("line", "html"),
    [
        ("the sentence that has a <b> in it for some reason or other", True),
        ("the sentence that has a <br/> in it for some reason or other", True),
        ('the sentence that has <a href="x"> in it for some reason or other', True),
        ("the sentence that has an <unk> in it for some reason or other", True),
        ("the sentence in which a < b holds for some reason or other", False),
        ("the sentence that ends in <3 for some reason or other", False),
        ("the sentence that ends a tag </p> for some reason or other", False),
        ("the sentence that has an &amp; in it for some reason or other", False),
    ],
)
def test_lines_with_a_tag(line: str, html: bool) -> None:
    kept, report = clean([f"a line before\n{line}\na line after it"])
    assert kept == [
        "a line before\na line after it" if html else f"a line before\n{line}\na line after it"
    ]
    assert report == NOTHING | {"lines with HTML": int(html)}


def test_lines_that_the_parser_gives_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 does so on ``<![bad``, later ones do not."""

    def feed(self: HTMLParser, data: str) -> None:
        raise AssertionError

    monkeypatch.setattr(HTMLParser, "feed", feed)
    kept, report = clean(["a line with <![bad markup\na line without"])
    assert kept == ["a line without"] and report == NOTHING | {"lines with HTML": 1}


def test_the_thresholds_themselves_are_allowed() -> None:
    assert (MOST_NON_LETTERS, FEWEST_CHARACTERS) == (0.1, 5)
    two_of_twenty, two_of_nineteen = "the film is from 19s", "the film is from 19"
    assert (len(two_of_twenty), len(two_of_nineteen)) == (20, 19)
    assert clean([two_of_twenty]) == ([two_of_twenty], NOTHING)
    assert clean([two_of_nineteen]) == (
        [],
        NOTHING | {"lines of non-letters": 1, "documents left empty": 1},
    )
    assert clean(["words\nword"]) == (["words"], NOTHING | {"short lines": 1})


def test_letters_are_those_of_any_alphabet() -> None:
    documents = ["größer als gestern", "日本語の映画です", "отличный фильм"]
    assert clean(documents) == (documents, NOTHING)


def test_the_first_reason_counts_and_a_dropped_line_is_known() -> None:
    kept, report = clean(["<p>12345</p>\n<p>12345</p>\n1234 5678\nx1\na real line"])
    assert kept == ["a real line"]
    assert report == NOTHING | {
        "lines with HTML": 1,
        "repeated lines": 1,
        "lines of non-letters": 2,
    }


def test_real_sentences(sentences: list[tuple[str, int]]) -> None:
    texts = [text for text, _ in sentences]
    spoilt = [*texts, *texts[:100], *(f"<p>{text}</p>" for text in texts[100:150])]
    kept, report = clean(texts)
    assert len(kept) > 0.9 * len(texts) and set(kept) <= set(texts)
    assert len(kept) == len(texts) - report["documents left empty"]
    assert (
        report["documents left empty"]
        == report["repeated lines"] + report["lines of non-letters"] + report["short lines"]
    )
    again, spoilt_report = clean(spoilt)
    assert again == kept
    assert spoilt_report["repeated lines"] == report["repeated lines"] + 100
    assert spoilt_report["lines with HTML"] == 50

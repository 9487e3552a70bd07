"""Every recipe on one model and device, beside what Table 1 of Ganesh et al. 2021, "Compressing
Large-Scale Transformer-Based Models: A Case Study on BERT", gathers of the method.

The demo's model and sentences, unless --model and --data are given; one fine-tuned teacher for all.
--recipes picks some, --steps shortens their training. The last thing printed is one JSON document:

    rows            per recipe:
      row             its name
      bytes_share, bytes_share_without_embedding
                      of the fp32 file's, percent; null without the embedding where the model was
                      beaten in everything and its file is gone
      speedup         against the fp32 teacher in ONNX Runtime (one thread)
      memory_share    of the peak that the fp32 model adds to a process, percent
      drop, stderr    points lost, and the paired standard error; on ``split``
      seconds         to make the model
      survey          size in percent of BERT-base's, with embeddings and without, and the mean
                      drop, where the table has the method: on other models, tasks and devices
    failed          recipes that made no model, each with its reason in ``failures``
    device          what it ran on
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from autocompress import SearchResult, demo, resources, search
from autocompress.errors import AutocompressError
from autocompress.files import cache_folder
from autocompress.hardware.agent import describe
from autocompress.pareto import OBJECTIVES
from autocompress.recipes import Recipe

DEVICE = "cpu-1-thread"
SURVEY: dict[str, tuple[float, float, float]] = {
    "gobo": (10.2, 5.5, 0.9),
    "reweighted-proximal-pruning": (67.6, 58.7, 0.0),
    "lottery-ticket": (48.9, 35.1, 0.63),
    "movement-pruning": (23.8, 3.0, 4.73),
    "minilm": (60.7, 50.0, 0.1),
    "distilbert": (60.7, 50.0, 1.73),
    "low-rank": (60.6, 49.1, 0.13),
    "albert-sharing": (10.7, 8.8, 0.58),
}
"""Percent of the size with embeddings and without, mean drop in points."""


def share(part: float | None, whole: float | None) -> float | None:
    return round(100 * part / whole, 1) if part is not None and whole else None


def row(name: str, found: SearchResult) -> dict[str, Any]:
    front, (uncut, *_, trial) = found.front, found.trials
    score, whole = trial.scores[DEVICE], front.baseline
    quality, timing = score.quality, score.timing
    rest = tested = None
    for member in front.members:
        if member.id == trial.id:
            quality, timing, tested = member.quality, member.timing, member.quality.drop_test
            rest = member.weight_bytes - (member.embedding_bytes or 0)
    assert quality is not None
    return {
        "row": name,
        "bytes_share": share(trial.weight_bytes, uncut.weight_bytes),
        "bytes_share_without_embedding": share(
            rest, whole.weight_bytes - (whole.embedding_bytes or 0)
        ),
        "speedup": round(timing.speedup, 2),
        "memory_share": share(timing.memory_bytes, whole.timing.memory_bytes),
        "drop": round(quality.drop_validation if tested is None else tested, 2),
        "stderr": round(
            quality.drop_validation_stderr if tested is None else quality.drop_stderr_reported, 2
        ),
        "split": "validation" if tested is None else "test",
        "seconds": round(trial.seconds, 1),
        "survey": SURVEY.get(name),
    }


def made(name: str, options: argparse.Namespace, folder: Path) -> SearchResult:
    """Raises:
    AutocompressError: no model came of it.
    """
    recipe = Recipe.load(name)
    if options.steps is not None and "recovery.steps" in recipe.settings:
        recipe = Recipe.load(name, [f"recovery.steps={options.steps}"])
    data, unlabeled = demo.data_files(cache_folder() / "demo")
    more: dict[str, Any] = {} if options.data else {"unlabeled": str(unlabeled)}
    found = search(
        options.model or demo.model_folder(),
        options.data or data,
        DEVICE,
        recipe.space,
        folder / name,
        finetune=options.model is None,
        trials=1,
        objectives=OBJECTIVES,
        **more,
    )
    trial = found.trials[-1]
    if trial.number == 0 or DEVICE not in trial.scores:
        raise AutocompressError(trial.reason or "it leaves this model as it is")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=resources.names("search_spaces/recipes"))
    parser.add_argument("--steps", type=int, help="of recovery at most; default: the recipe's")
    parser.add_argument("--model", help="a fine-tuned classifier")
    parser.add_argument("--data")
    options = parser.parse_args()
    if (options.model is None) != (options.data is None):
        parser.error("give --model and --data together")
    rows, failures = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.recipes:
            try:
                rows.append(row(name, made(name, options, Path(scratch))))
                print(json.dumps(rows[-1]), flush=True)
            except AutocompressError as error:
                failures[name] = str(error)
                print(f"{name}: {error}", flush=True)
    document = {"rows": rows, "failed": len(failures), "failures": failures, "device": describe()}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()

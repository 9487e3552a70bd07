"""How well the latency table foretells: random students that mix depth, heads and FFN widths, each
in nine number formats.

Formats differ between layers too. Runs a search of the demo's encoder without any training, so
every model is predicted, then built and timed. The table is measured anew; a teacher that was
fine-tuned before is taken. Takes some half an hour with the 24 students that give more than 200
models.
The last thing printed is one JSON document:

    mean_abs_error      of the predicted latency relative to the measured one, by the table alone
    rank_correlation    Spearman's, between predicted and measured, likewise
    n                   models, the uncut one in other formats than fp32 among them
    measurements        that the table was built from
    recalibrated        mean_abs_error of what the search itself predicted, with the table set right
                        by each trial as it came
    worst               largest absolute error, by the table alone
    margin              share by which a limit must be foretold to be missed for a refusal unseen
    wrong_refusals      share of the models that a limit at their own latency would refuse unseen,
                        by the table alone
    by_format           mean_abs_error of each number format
    device              what it ran on
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from autocompress import demo
from autocompress.engine.tables import read_table
from autocompress.files import cache_folder
from autocompress.hardware.agent import describe
from autocompress.journal import Trial
from autocompress.latency.predictor import Shape, shape_of
from autocompress.limits import Limits
from autocompress.pareto import METRICS
from autocompress.plan import Plan
from autocompress.progress import Progressing
from autocompress.search_space import SearchSpace
from autocompress.searching import search
from autocompress.structure import Structure
from autocompress.techniques import SETTINGS

SPACE = {
    "layers": {"keep": [1.0, 0.84, 0.67, 0.5, 0.34], "rule": ["uniform", "bottom"]},
    "heads": {"keep": {"low": 0.1, "high": 1.0}, "allocation": ["global", "uniform"]},
    "ffn": {"keep": {"low": 0.05, "high": 1.0}, "allocation": ["global", "uniform"]},
    "quantization": {
        "scheme": ["fp32", "int8-dynamic", "int8-static", "int8-weights", "int4-weights"],
        "block_size": 128,
        "spared": ["none", "ends"],
    },
    "recovery": {"steps": 0},
}
UNLIMITED_MS = 1e6


def shape(trial: Trial) -> Shape:
    assert trial.sizes
    plan = Plan("bert", Structure.of_sizes(trial.sizes))
    return shape_of(plan, SETTINGS.candidate(trial.candidate))


def scheme(trial: Trial) -> str:
    return SETTINGS.candidate(trial.candidate).text("quantization.scheme")


def ranks(values: list[float]) -> list[int]:
    order: list[int] = np.argsort(np.argsort(values)).tolist()
    return order


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=24, help="students")
    parser.add_argument("--hardware", default="cpu-1-thread")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data, _ = demo.data_files(cache_folder() / "demo")
    with tempfile.TemporaryDirectory() as scratch:
        teachers, cache = cache_folder() / "teachers", Path(scratch) / "cache"
        for folder in (teachers, cache):
            folder.mkdir(parents=True, exist_ok=True)
        (cache / "teachers").symlink_to(teachers)
        os.environ["AUTOCOMPRESS_CACHE"] = str(cache)  # so that the table is measured anew
        run = Path(scratch) / "run"
        with Progressing(None, METRICS["accuracy"]) as listener:
            search_result = search(
                demo.model_folder(),
                data,
                options.hardware,
                SearchSpace.from_mapping("latency-prediction", SPACE),
                run,
                finetune=True,
                budget=Limits(max_latency_ms=UNLIMITED_MS),
                trials=options.candidates,
                sampler="random",
                seed=options.seed,
                listener=listener,
            )
        table = read_table(run, options.hardware)
        prediction = json.loads((run / "run.json").read_text(encoding="utf-8"))["prediction"][
            options.hardware
        ]
    measured_trials = [trial for trial in search_result.trials[1:] if trial.scores]
    measured = [1 / trial.scores[options.hardware].timing.speedup for trial in measured_trials]
    predicted = [table.predict(shape(trial)) for trial in measured_trials]
    signed = np.array(predicted) / measured - 1
    errors = np.abs(signed)
    result = {
        "mean_abs_error": float(errors.mean()),
        "rank_correlation": float(np.corrcoef(ranks(predicted), ranks(measured))[0, 1]),
        "n": len(measured),
        "measurements": len(table.rows),
        "recalibrated": prediction["mean_abs_error"],
        "worst": float(errors.max()),
        "margin": table.margin,
        "wrong_refusals": float(np.mean(signed > table.margin)),
        "by_format": {
            name: float(
                np.mean(
                    [e for e, t in zip(errors, measured_trials, strict=True) if scheme(t) == name]
                )
            )
            for name in sorted({scheme(t) for t in measured_trials})
        },
        "hardware": options.hardware,
        "device": describe(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""No step of a search touches what is held out for a later one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.engine.loop import Loop
from autocompress.engine.scoring import Scorer
from autocompress.engine.verification import verified
from autocompress.files import keep_folder
from autocompress.hardware.profile import HardwareProfile
from autocompress.journal import Trial
from autocompress.limits import Limits
from autocompress.reading import Reading
from autocompress.scores import Timing
from autocompress.searching import search
from autocompress.tasks.text_classification import Split, TextClassification
from tests.conftest import SizeDevice
from tests.guarding import Guard, Guarded, Touched
from tests.searching import CPU, Scripted, space

VALUES: dict[str, Any] = {
    "heads": {"keep": [1.0, 0.5]},
    "recovery": {
        "steps": [0, 65],
        "objectives": [["logits", "hidden-states"]],
        "unlabeled_share": 0.5,
    },
    "quantization": {"scheme": ["fp32", "int8-static"]},
}


def test_a_search_never_touches_a_held_out_split_too_early(
    tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    """With a teacher fine-tuned, importance, calibration, unlabelled text, and two rungs."""
    guard, lines = Guard(), tmp_path / "lines.txt"
    lines.write_text("".join(f"{number} of what was seen is good .\n" for number in range(40)))
    chosen: dict[str, Any] = {
        "heads.keep": 0.5,
        "recovery.steps": 65,
        "quantization.scheme": "int8-static",
    }
    result = search(
        tiny_model,
        data_file,
        CPU,
        space(VALUES),
        tmp_path / "run",
        task=guard.kind,
        listener=guard,
        unlabeled=str(lines),
        sampler=Scripted(chosen),
        trials=1,
        finetune=True,
        connect=SizeDevice,
    )
    assert len(result.trials) == 5
    assert {trial.state for trial in result.trials} <= {"complete", "outdone"}
    assert [steps for steps, _ in result.trials[3].rungs] == [32, 65]
    first = guard.asked.index("test")
    assert set(guard.asked[:first]) == {"validation"}
    assert all(member.quality.test is not None for member in result.front.members)


UNREAD = Reading({}, {}, {})
EXAMPLES = 400
VALIDATION, TEST = 5, 6
"""First tokens of the rows of a split."""
RIGHT: dict[str, tuple[float, float]] = {
    "t000": (0.90, 0.90),
    "t001": (0.85, 0.50),
    "t002": (0.75, 0.95),
    "t003": (0.60, 0.95),
}
"""Model -> the share of right answers on validation and on test."""
KILOBYTES = {"t000": 1000, "t001": 500, "t002": 500, "t003": 250}


class Answering(SizeDevice):
    """Gives as many right answers, 1, as the table has it; remembers what it timed beside the
    baseline."""

    def __init__(self, profile: HardwareProfile, lengths: Sequence[int]) -> None:
        super().__init__(profile, lengths)
        self.timed: list[str] = []

    def time(
        self, baseline: Path, models: Sequence[Path], *, final: bool
    ) -> tuple[Timing, list[Timing]]:
        self.timed += [path.name for path in models]
        return super().time(baseline, models, final=final)

    def predict(
        self, model: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]
    ) -> NDArray[np.float32]:
        ids = np.concatenate([batch["input_ids"] for batch in batches])
        share = RIGHT[model.name][int(ids[0, 0] == TEST)]
        is_right = (ids[:, 1] < share * EXAMPLES).astype(np.float32)
        return np.stack([1 - is_right, is_right], axis=1)


@pytest.fixture
def tried(tmp_path: Path) -> tuple[list[Trial], Scorer, Answering]:
    """The baseline's trial, which took 8 s, and those of the others."""
    validation, test = (
        Split([np.array([[first, i]]) for i in range(EXAMPLES)], np.ones(EXAMPLES, np.int64))
        for first in (VALIDATION, TEST)
    )
    task = TextClassification(("a", "b"), ("input_ids",), 0, test, validation, test, [], UNREAD)
    device = Answering(HardwareProfile.load(CPU), [2])
    scorer = Scorer(task, {CPU: device}, {CPU: Limits()}, tmp_path / "models" / "t000")
    for name, kilobytes in KILOBYTES.items():
        (scorer.models / name).mkdir(parents=True)
        (scorer.models / name / "model.onnx").write_bytes(bytes(1000 * kilobytes))
        keep_folder(scorer.models / name)
    trials: list[Trial] = []
    for number, name in enumerate(RIGHT):
        [timings] = scorer.time([scorer.models / name])
        assert isinstance(timings, dict)
        reference = trials[0].scores if trials else None
        scores = scorer.scores(scorer.models / name, timings, reference)
        sizes = {"layers": [0], "heads": [1], "ffn": [1]}
        size, path = 1000 * KILOBYTES[name], f"models/{name}"
        trials.append(
            Trial(
                number,
                {},
                "complete",
                sizes,
                scores=scores,
                weight_bytes=size,
                path=path,
                seconds=8.0,
            )
        )
    return trials, scorer, device


def test_the_front_is_chosen_by_validation(
    tried: tuple[list[Trial], Scorer, Answering],
) -> None:
    """One worse there is beaten, and one better there stays, whatever they are on test; the
    baseline is timed once, as what the others are compared with."""
    trials, scorer, device = tried
    device.timed.clear()
    [front] = verified(trials, scorer).fronts
    assert sorted(device.timed) == ["t001", "t003"]
    assert [member.id for member in front.members] == ["t003", "t001", "t000"]
    assert [member.quality.test for member in front.members] == [0.95, 0.5, 0.9]
    drops = [member.quality.drop_test for member in front.members]
    assert drops == pytest.approx([-5, 40, 0])


def test_what_verification_takes(tried: tuple[list[Trial], Scorer, Answering]) -> None:
    """Two models are timed for 3 s warm and 1.5 s cold, and scored in a half and a quarter of the
    baseline's 4 s; a test split of twice the size takes twice as long."""
    trials, scorer, _ = tried
    loop: Any = SimpleNamespace(trials=trials, scorer=scorer)
    assert Loop._verification_s(loop) == pytest.approx(5 + 2 * 4.5 + 4 * 1.75)
    task: Any = scorer.task
    twice = Split(task.test.rows * 2, np.ones(2 * EXAMPLES, np.int64))
    loop.scorer = replace(scorer, task=replace(task, test=twice))
    assert Loop._verification_s(loop) == pytest.approx(5 + 2 * 4.5 + 2 * 4 * 1.75)
    loop.trials = trials[:1]
    assert Loop._verification_s(loop) == pytest.approx(5 + 4.5 + 2 * 4)


def test_the_guard_raises() -> None:
    """Labels, tokens and answers of a split before its step; lengths may be known."""
    guard, rows = Guard(), [np.array([[5, 6, 7]]), np.array([[8, 9]])]
    split = Split(rows, np.array([0, 1]))
    task: Any = Guarded(
        TextClassification(("a", "b"), ("input_ids",), 0, split, split, split, [], UNREAD),
        guard,
    )
    assert [row.shape[1] for row in task.test.rows] == [3, 2]
    assert len(task.questions(task.validation.take([1]), 2)[0]["input_ids"]) == 1
    for too_early in (
        lambda: task.questions(task.test, 2),
        lambda: task.score(np.ones((2, 1)), task.test),
        lambda: task.batch(task.validation.rows),
        lambda: np.asarray(task.test.rows[0]),
        lambda: task.validation.labels,
    ):
        with pytest.raises(Touched):
            too_early()
    guard.stage("verifying the front")
    assert len(task.questions(task.test, 2)) == 1

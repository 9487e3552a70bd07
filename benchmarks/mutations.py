"""Which promises the tests hold: one line of the code is spoilt at a time, and the tests that are
to notice are run.

Each mutation breaks a promise as a plausible mistake would. They run one after the other in a copy
of the source tree, which takes some ten minutes. One whose text is not found exactly once is an
error, and so is a test that fails without any mutation. The last thing printed is one JSON
document:

    mutations   how many there are
    killed      how many of them some test noticed
    share       of the two
    alive       file, what was spoilt, and the promise, of those that none did
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_S = 600
"""A test that runs for longer has noticed."""


@dataclass(frozen=True)
class Mutation:
    """One line spoilt.

    Args:
        file: inside the package.
        text: what stands there, exactly once.
        spoilt: what it becomes.
        promise: that no longer holds.
        tests: files, or tests of them, that are to notice.
    """

    file: str
    text: str
    spoilt: str
    promise: str
    tests: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """Why it cannot be applied."""
        found = (root / "autocompress" / self.file).read_text(encoding="utf-8").count(self.text)
        return None if found == 1 else f"{self.file}: {self.text!r} is there {found} times"


def spoil(file: str, text: str, spoilt: str, promise: str, *tests: str) -> Mutation:
    return Mutation(file, text, spoilt, promise, tuple(f"tests/test_{test}" for test in tests))


MUTATIONS = (
    # splits never mix
    spoil(
        "engine/making.py",
        "self.task.train.rows, self.task.train.labels",
        "self.task.validation.rows, self.task.validation.labels",
        "importance is measured on training examples",
        "held_out.py",
    ),
    spoil(
        "engine/session.py",
        "rows, size = task.train.rows",
        "rows, size = task.test.rows",
        "ranges are calibrated on training examples",
        "held_out.py",
    ),
    spoil(
        "engine/making.py",
        "learning(task.train, task.unlabeled)",
        "learning(task.train, task.test.rows)",
        "students learn nothing from test texts",
        "held_out.py",
    ),
    spoil(
        "tasks/text_classification.py",
        "for part in parts for text, _, _ in part]",
        "for part in parts[:2] for text, _, _ in part]",
        "unlabelled lines that are test texts are dropped",
        "text_classification.py",
    ),
    spoil(
        "pareto.py",
        '"quality": member.quality.drop_validation',
        '"quality": member.quality.drop_reported',
        "the front is chosen by validation",
        "held_out.py::test_the_front_is_chosen_by_validation",
    ),
    spoil(
        "choosing.py",
        "ranks = member.latency_ms.value, member.quality.drop_validation",
        "ranks = member.latency_ms.value, member.quality.drop_reported",
        "pick chooses by validation",
        "pareto.py",
    ),
    spoil(
        "tasks/data.py",
        '[*validation, *left["test"]], train,',
        "validation, train,",
        "no test text is trained on",
        "data.py",
    ),
    spoil(
        "engine/verification.py",
        "scorer.task.drop(baseline, evidence, scorer.task.test)",
        "(quality.drop_validation, quality.drop_validation_stderr)",
        "the drop that is reported is of the test split",
        "held_out.py::test_the_front_is_chosen_by_validation",
    ),
    # choosing
    spoil(
        "limits.py",
        "facts.drop + stderrs * facts.drop_stderr",
        "facts.drop",
        "a limit of the drop is held with a margin",
        "limits.py",
        "choosing.py",
        "pareto.py",
    ),
    spoil(
        "limits.py",
        "** (1 / rivals)",
        "** 1",
        "the margin grows with the models that are chosen among",
        "limits.py",
        "choosing.py",
        "pareto.py",
    ),
    spoil(
        "limits.py",
        "if not miss <= 0",
        "if miss > 0",
        "what is not a number meets no limit",
        "limits.py",
    ),
    spoil(
        "limits.py",
        "limit = min((mb for mb in both",
        "limit = max((mb for mb in both",
        "of two limits of memory the tighter one holds",
        "limits.py",
    ),
    spoil(
        "pareto.py",
        "area += x * max(0.0, y - height)",
        "area += x * y",
        "no area counts twice in the hypervolume",
        "pareto.py",
    ),
    spoil(
        "pareto.py",
        "(a != b or i < j)",
        "a != b",
        "of equal models one stays",
        "pareto.py",
    ),
    spoil(
        "pareto.py",
        "self.latency_ms.interval[1] if certain else",
        "self.latency_ms.value if certain else",
        "a latency whose interval crosses the limit does not meet it",
        "pareto.py",
    ),
    # importance and pruning
    spoil(
        "knowledge/fisher.py",
        "gradient.pow(2).sum(0)",
        "gradient.sum(0).pow(2)",
        "Fisher information is of single examples",
        "importance.py",
    ),
    spoil(
        "knowledge/gradient.py",
        "own / own.norm().clamp(min=1e-30)",
        "own",
        "the gradient criterion is normalized by layer",
        "importance.py",
    ),
    spoil(
        "knowledge/gradient.py",
        "if gone:",
        "if False:",
        "heads that are left are measured anew in each round",
        "importance.py",
    ),
    spoil(
        "knowledge/magnitude.py",
        "squares / squares.mean()",
        "squares",
        "magnitudes compare between layers",
        "importance.py",
    ),
    spoil(
        "techniques/unit_pruning.py",
        "np.argsort(-np.concatenate(means)",
        "np.argsort(np.concatenate(means)",
        "the most important heads and neurons stay",
        "unit_pruning.py",
    ),
    spoil(
        "techniques/unit_pruning.py",
        "tuple(layer[i] for i in positions)",
        "tuple(positions)",
        "units keep their own indices after an earlier cut",
        "unit_pruning.py",
        "techniques.py",
    ),
    spoil(
        "techniques/latency_pruning.py",
        "float(important[block].mean()) / cost",
        "float(important[block].mean())",
        "what takes longest for its worth goes first",
        "latency_pruning.py",
    ),
    spoil(
        "techniques/hidden_size.py",
        "np.argsort(-scores",
        "np.argsort(scores",
        "the most important hidden dimensions stay",
        "narrow.py",
        "hidden_importance.py",
        "techniques.py",
    ),
    spoil(
        "techniques/layer_truncation.py",
        "[i * n // k for i in range(k)]",
        "list(range(k))",
        "layers are kept by their rule",
        "layer_truncation.py",
    ),
    spoil(
        "families/encoder.py",
        "layers[layer.source] for layer",
        "layers[i] for i, layer in enumerate(structure.layers) if layer",
        "a student has the layers of its plan",
        "families.py",
    ),
    # training
    spoil(
        "training/steps.py",
        "weight_decay=0.01",
        "weight_decay=0.0",
        "weights decay",
        "training.py",
    ),
    spoil(
        "training/steps.py",
        "nn.utils.clip_grad_norm_(self.dense, 1.0)",
        "pass",
        "gradients are clipped",
        "training.py",
    ),
    spoil(
        "training/steps.py",
        "head is None or head.weight is not embeddings.weight",
        "False",
        "of an embedding only the rows of a batch are changed",
        "training.py",
    ),
    spoil(
        "training/steps.py",
        "max(0.0, (steps - done) / (steps - trunk))",
        "1.0",
        "the learning rate falls to zero",
        "training.py",
    ),
    spoil(
        "training/steps.py",
        "rng.permutation(count) + offset",
        "rng.integers(0, count, count) + offset",
        "every example comes once in an epoch",
        "training.py",
    ),
    spoil(
        "training/recovery.py",
        'self.lesson.random.set_state(state["random"])',
        "pass",
        "a resumed recovery draws as one that was never stopped",
        "recovery.py",
    ),
    spoil(
        "training/recovery.py",
        "return min(trunk_steps(self.steps), self.lesson.steps)",
        "return self.steps",
        "students of fewer and more steps share no more than what they have in common",
        "student.py",
    ),
    spoil(
        "engine/making.py",
        "if 0 < student.steps <= recovery.shared:",
        "if 0 < student.steps:",
        "a student goes on from no trunk that is longer than its own",
        "student.py",
    ),
    spoil(
        "training/recovery.py",
        "for _ in range(self.done):",
        "for _ in range(0):",
        "a resumed recovery sees the batches that it had not seen",
        "recovery.py",
    ),
    spoil(
        "training/recovery.py",
        "(1 - weight) * own_weight * objective",
        "own_weight * objective",
        "labels and the teacher share the loss",
        "recovery.py",
        "recovery_settings.py",
    ),
    spoil(
        "training/recovery.py",
        "reversed(self.modifiers)]",
        "self.modifiers]",
        "modifiers are removed in the order opposite to theirs",
        "recovery.py",
        "recovery_settings.py",
        "testing.py",
    ),
    spoil(
        "distillation/logits.py",
        "temperature**2 * kl_div",
        "kl_div",
        "soft labels weigh the same at every temperature",
        "distillation.py",
    ),
    spoil(
        "distillation/hidden_states.py",
        ".pow(2) * mask",
        ".pow(2)",
        "padding counts nothing in hidden states",
        "distillation.py",
    ),
    spoil(
        "distillation/cosine.py",
        "((1 - cosines) * student.mask)",
        "(1 - cosines)",
        "padding counts nothing in directions",
        "distillation.py",
        "language_objectives.py",
    ),
    spoil(
        "distillation/layer_maps.py",
        "(i, round(i * teacher / student))",
        "(i, i)",
        "students match layers spread over their teacher",
        "distillation.py",
    ),
    spoil(
        "distillation/annealed_logits.py",
        "(1 - (temperature - 1) / stages)",
        "1",
        "annealed logits grow",
        "distillation.py",
    ),
    # what ships
    spoil(
        "graphs/runtime.py",
        "per_channel=True,\n            reduce_range",
        "per_channel=False,\n            reduce_range",
        "dynamic int8 has a scale for each channel",
        "formats.py::test_int8_weights_have_a_scale_for_each_channel",
    ),
    spoil(
        "graphs/runtime.py",
        "per_channel=True,\n            activation_type",
        "per_channel=False,\n            activation_type",
        "static int8 has a scale for each channel",
        "formats.py::test_int8_weights_have_a_scale_for_each_channel",
    ),
    spoil(
        "graphs/runtime.py",
        "np.array(1 / 127, np.float32)",
        "np.array(1 / 31, np.float32)",
        "activations by token have eight bits",
        "formats.py::test_by_token_every_number_comes_back_within_half_a_step_of_eight_bits",
    ),
    spoil(
        "graphs/runtime.py",
        "np.abs(matrix).max(axis=0) / 127",
        "np.abs(matrix).max() / 127",
        "int8 by token has a scale for each channel",
        "formats.py::test_int8_weights_have_a_scale_for_each_channel",
    ),
    spoil(
        "graphs/runtime.py",
        'setdefault("ORT_DISABLE_TELEMETRY", "1")',
        'setdefault("ORT_DISABLE_TELEMETRY", "0")',
        "nothing is reported to anybody",
        "telemetry.py",
    ),
    spoil(
        "shipping.py",
        "PARITY_LIMIT = 1e-4",
        "PARITY_LIMIT = 1e-1",
        "a graph that differs from torch is refused",
        "export.py::test_a_logit_of_the_graph_may_be_off_by_a_ten_thousandth",
    ),
    spoil(
        "shipping.py",
        "if not np.isfinite(after).all():",
        "if False:",
        "a file that answers with no numbers is refused",
        "export.py",
    ),
    spoil(
        "shipping.py",
        "REFUSED | described",
        "described",
        "transformers' own loaders refuse a compressed folder",
        "export.py",
    ),
    spoil(
        "exporting.py",
        "files.pop(_WEIGHTS)",
        "files[_WEIGHTS]",
        "no weights of torch lie beside a config that loaders take",
        "exporting.py",
    ),
    spoil(
        "exporting.py",
        "if name not in _OF_THIS_MACHINE",
        "if name",
        "no path of this machine leaves with a model",
        "exporting.py",
    ),
    spoil(
        "card.py",
        "<= {0, *front.baseline.sizes",
        "<= {0, *member.sizes",
        "Optimum is not said to generate where the caches of layers differ",
        "exporting.py",
    ),
    spoil(
        "graphs/edit.py",
        "tensor.data_type, tuple(tensor.dims), hashlib",
        "tensor.data_type, hashlib",
        "only tensors of one shape are stored as one",
        "edit.py",
        "formats.py::test_weights_of_their_own_stay_as_they_are",
    ),
    spoil(
        "formats/__init__.py",
        "frozenset(i for i, own in enumerate(layers) if own != name)",
        "frozenset()",
        "spared layers keep more bits",
        "spared_layers.py",
    ),
    spoil(
        "training/teacher.py",
        "use_safetensors=True",
        "use_safetensors=False",
        "no pickle is read",
        "teacher.py",
    ),
    # the search
    spoil(
        "engine/ladder.py",
        "FIRST_RUNG = 32",
        "FIRST_RUNG = 16",
        "candidates are first compared after 32 steps",
        "ladder.py::test_a_ladder_ends_with_the_candidate_s_own_steps",
    ),
    spoil(
        "engine/proposing.py",
        "not None:\n                self.sampler.tell(handle, *self.outcomes.of(known))",
        "not None:\n                pass",
        "the sampler hears of proposals that were tried before",
        "engine.py::test_the_sampler_hears_of_every_proposal",
    ),
    spoil(
        "engine/clock.py",
        "return self.before + time.monotonic() - self.started",
        "return time.monotonic() - self.started",
        "time spent before a resume counts",
        "resuming.py::test_time_spent_before_a_resume_counts",
    ),
    spoil(
        "engine/proposing.py",
        "return trial.student, self._candidate(trial)",
        "return trial.number, self._candidate(trial)",
        "no model is made twice",
        "engine.py::test_a_small_space_is_tried_whole_and_once",
        "engine.py::test_an_uncut_candidate_keeps_its_recovery",
    ),
    spoil(
        "engine/foresight.py",
        "self.excess(name, relative) > self.tables[name].margin",
        "self.excess(name, relative) > 0",
        "a candidate is refused unseen only when it is sure to miss the limit",
        "foresight.py",
    ),
    spoil(
        "engine/foresight.py",
        "shape_of(plan, candidate), 1 / score.timing.speedup",
        "shape_of(plan, candidate), score.timing.speedup",
        "the table is set right by trials",
        "foresight.py",
    ),
    spoil(
        "engine/samplers/optuna_sampler.py",
        "trial.set_constraint(_CONSTRAINT, violation)",
        "pass",
        "the sampler heeds the limits",
        "samplers.py",
    ),
    spoil(
        "engine/making.py",
        "self._training(plan, candidate), self.seed)",
        "self._training(plan, candidate), 0)",
        "another seed makes other students",
        "resuming.py::test_another_seed_is_another_search_of_other_students",
    ),
    # files
    spoil(
        "files.py",
        "if folder.is_symlink():",
        "if False:",
        "nothing is deleted behind a link",
        "files.py",
    ),
    spoil(
        "files.py",
        "if match and (match[1] or match[2]) not in at_work:",
        "if path.name not in at_work:",
        "nothing is deleted that is not ours",
        "files.py",
    ),
    spoil(
        "journal.py",
        "if recorded.get(key) != asked.get(key):",
        "if False:",
        "a run goes on with the inputs that it began with",
        "journal.py",
    ),
    spoil(
        "journal.py",
        "if whole != data:",
        "if False:",
        "a line cut short by a kill is dropped",
        "journal.py",
    ),
    spoil(
        "progress.py",
        "if kind == self.last_reason and not self.verbose:",
        "if False:",
        "trials refused alike are counted",
        "console.py",
    ),
    spoil(
        "engine/defaults.py",
        "if name.endswith(head):",
        "if True:",
        "the task is that of the model's head",
        "arguments.py",
    ),
    spoil(
        "files.py",
        "fcntl.LOCK_EX if alone",
        "fcntl.LOCK_SH if alone",
        "one process works on a run",
        "journal.py",
    ),
    spoil(
        "arguments.py",
        '"--allow-tie", action',
        '"--allow-ties", action',
        "pages name the options that there are",
        "documentation.py",
    ),
    spoil(
        "tasks/data.py",
        "close or double the quotation ",
        "close or drop the quotation ",
        "pages tell messages as they are",
        "documentation.py",
    ),
)


def survey(mutations: Sequence[Mutation], copy: Path) -> list[Mutation]:
    """The mutations that no test noticed; ``copy`` is theirs to change."""
    alive = []
    for number, mutation in enumerate(mutations, 1):
        path = copy / "autocompress" / mutation.file
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace(mutation.text, mutation.spoilt), encoding="utf-8")
        noticed = _fails(copy, mutation.tests)
        path.write_text(before, encoding="utf-8")
        if not noticed:
            alive.append(mutation)
        outcome = "killed" if noticed else "ALIVE"
        print(f"{number}/{len(mutations)} {outcome}: {mutation.promise}", flush=True)
    return alive


def _fails(copy: Path, tests: Sequence[str]) -> bool:
    """Whether one of the tests fails.

    Raises:
        RuntimeError: they cannot be run.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            timeout=LONGEST_S,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(tests)} cannot be run:\n{done.stdout[-2000:]}{done.stderr}")
    return done.returncode == 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="of mutations whose file or promise holds this")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in m.file or options.only in m.promise]
    problems = [problem for mutation in chosen if (problem := mutation.problem(ROOT))]
    if problems:
        sys.exit("\n".join(problems))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        print(f"{len(chosen)} mutations; first the tests as they are ...", flush=True)
        for test in tests:
            if _fails(copy, [test]):
                sys.exit(f"{test} fails without any mutation")
        alive = survey(chosen, copy)
    killed = len(chosen) - len(alive)
    result = {
        "mutations": len(chosen),
        "killed": killed,
        "share": round(killed / len(chosen), 3),
        "alive": [{"file": m.file, "spoilt": m.text, "promise": m.promise} for m in alive],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""Students: a folder is what its name says, and stopping anywhere changes no bit of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress import student
from autocompress.artifact import REFUSED, load_model
from autocompress.candidate import Candidate
from autocompress.distillation.settings import OBJECTIVES
from autocompress.engine import making as engine_making
from autocompress.engine.making import Maker, Making
from autocompress.errors import UserError
from autocompress.interfaces import Batch, Knowledge, Modifier
from autocompress.knowledge import magnitude
from autocompress.plan import Plan
from autocompress.structure import Layer, Structure
from autocompress.student import WEIGHTS, Student, config_of, first
from autocompress.tasks.language_modeling import LanguageModeling
from autocompress.techniques import SETTINGS, resolve
from autocompress.training.outputs import Teacher, TransferSet
from autocompress.training.repair import Calibration
from tests.exporting import export_model
from tests.test_recovery import padded
from tests.tiny_models import FFN, HEADS, LAYERS, MODELS, VOCABULARY, build, inputs

TIED, UNTIED = "gpt2 with its head tied", "llama with a language head"
CUT = {"layers.keep": 0.67, "heads.keep": 0.5, "ffn.keep": 0.5}
STEPS, FEWER = 12, 5
"""The generator of texts learns in the first and in the eleventh."""
TRUNK, SHORT_TRUNK = 9, 4
"""Their first four fifths."""
DISTURBED = {"recovery.unlabeled_share": 0.25, "recovery.redraw_steps": 5}


def transfer(name: str) -> TransferSet:
    """Texts of 2 to 8 tokens, the last third unlabelled; of a language model all of 8, and the
    labels are tokens."""
    rng = np.random.default_rng(0)
    generates = name in (TIED, UNTIED)
    lengths = [8] * 48 if generates else rng.integers(2, 9, 48)
    rows = [rng.integers(5, VOCABULARY, (1, int(length))) for length in lengths]
    labels = np.concatenate(rows) if generates else rng.integers(0, 2, 32)
    return TransferSet(rows, labels, padded, LanguageModeling.loss, 8, generates)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Teacher]:
    """Each made once."""
    known: dict[str, Teacher] = {}

    def teacher(name: str) -> Teacher:
        if name not in known:
            scratch = tmp_path_factory.mktemp("teacher") / "scratch"
            known[name] = Teacher(build(name), MODELS[name].family, transfer(name), scratch)
        return known[name]

    return teacher


def planned(teacher: Teacher, candidate: Candidate) -> Plan:
    model, family = teacher.model, teacher.family
    scores = magnitude.measure(model, family)
    knowledge = Knowledge({"magnitude": scores}, measured=lambda f: f(model, family))
    return resolve(Plan(family.name, teacher.structure), candidate, knowledge)


def chosen(**settings: Any) -> dict[str, Any]:
    """A cut, and training of so many steps."""
    defaults: dict[str, Any] = {"recovery.steps": STEPS, "recovery.learning_rate": 1e-2, **CUT}
    defaults |= {f"{kind}.importance": "magnitude" for kind in ("heads", "ffn")}
    return defaults | {name.replace("__", "."): value for name, value in settings.items()}


def always(_: float) -> bool:
    return True


def never(_: float) -> bool:
    return False


class Bench:
    """Makes students of one candidate in a folder that it may share with others."""

    def __init__(
        self,
        teacher: Teacher,
        folder: Path,
        settings: dict[str, Any],
        lineage: str = "teacher",
        seed: int = 3,
    ) -> None:
        self.candidate = SETTINGS.candidate(settings)
        self.plan = planned(teacher, self.candidate)
        self.maker = Maker(teacher, folder, lineage, seed)
        self.folder = folder / self.maker.id_of(self.plan, self.candidate)
        self.trunk = folder / self.maker.trunk_of(self.plan, self.candidate)
        self.steps = int(self.candidate.number("recovery.steps", 0))
        folder.mkdir(exist_ok=True)

    def begin(self) -> Making:
        torch.manual_seed(len(list(self.folder.parent.iterdir())))
        return self.maker.begin(self.plan, self.candidate)

    def stop(self) -> int:
        """Train in a session of its own as far as the first look at the time.

        Returns:
            Steps that were done when it began.
        """
        making = self.begin()
        begun = making.done
        assert not self.maker.train(making, self.steps, never)
        return begun

    def train(self) -> tuple[Student, dict[str, Tensor]]:
        """To the end, in a session of its own that knows of those before what the folder says.

        Returns:
            The student, and what training had come to.
        """
        making = self.begin()
        assert self.maker.train(making, self.steps, always)
        assert making.recovery is not None
        state = making.recovery.state()
        self.maker.seal(making)
        return Student.load(self.folder), state


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the time looked at after every so many steps."""
    return lambda steps: monkeypatch.setattr(engine_making, "_CHECKED_STEPS", steps)


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_student_is_begun_paused_and_sealed(
    teachers: Callable[[str], Teacher], looks: Callable[[int], None], tmp_path: Path
) -> None:
    bench = Bench(teachers("bert"), tmp_path, chosen())
    untrained = first(bench.maker.teacher.model, MODELS["bert"].family, bench.plan, "copied")

    making = bench.begin()
    begun = Student.load(bench.trunk)
    assert (begun.steps, begun.answers, begun.sealed, making.done) == (0, None, False, 0)
    assert begun.state() == {} and same(begun.model(), untrained) and not begun.model().training

    looks(5)
    assert not bench.maker.train(making, STEPS, never)
    paused = Student.load(bench.trunk)
    assert (paused.steps, paused.answers, paused.sealed) == (5, None, False)
    assert paused.state() and same(paused.model(), untrained)

    assert bench.maker.train(making, STEPS, always)
    shared = Student.load(bench.trunk)
    assert (shared.steps, shared.sealed, making.done) == (TRUNK, False, STEPS)
    assert not bench.folder.exists()

    bench.maker.seal(making, "7f01")
    sealed = Student.load(bench.folder)
    assert (sealed.steps, sealed.answers, sealed.sealed) == (STEPS, "7f01", True)
    assert sealed.state() == {} and making.done == STEPS
    assert same(sealed.model(), making.model) and not same(sealed.model(), untrained)
    assert Student.load(bench.trunk) == shared

    again, before = bench.begin(), files(bench.folder)
    assert again.recovery is None and again.done == STEPS
    assert bench.maker.train(again, STEPS, never)
    assert bench.maker.seal(again, "ff") == sealed and files(bench.folder) == before
    assert sorted(before) == [WEIGHTS, "student.json"]
    assert {path.name for path in tmp_path.iterdir()} == {sealed.id, shared.id}
    assert (sealed.id, shared.id) == (bench.folder.name, bench.trunk.name)


def test_without_training_it_is_sealed_as_it_began(
    teachers: Callable[[str], Teacher], tmp_path: Path
) -> None:
    bench = Bench(teachers("bert"), tmp_path, chosen(recovery__steps=0))
    making = bench.begin()
    begun = files(bench.folder)
    assert bench.maker.train(making, 0, never)
    sealed = bench.maker.seal(making)
    assert (sealed.steps, sealed.sealed, sealed.plan) == (0, True, bench.plan)
    assert files(bench.folder)[WEIGHTS] == begun[WEIGHTS]
    assert [path.name for path in tmp_path.iterdir()] == [bench.folder.name]


@pytest.mark.parametrize("parts", [{}, {"sharing.groups": 2}])
def test_a_student_may_begin_repaired(
    parts: dict[str, Any], teachers: Callable[[str], Teacher], tmp_path: Path
) -> None:
    """Whatever else was begun before it; what its parts make comes after."""
    teacher = teachers("bert")

    def begun(folder: str, **settings: Any) -> tuple[str, nn.Module]:
        bench = Bench(teacher, tmp_path / folder, chosen(recovery__steps=0, **settings) | parts)
        return bench.folder.name, bench.begin().model

    plain, repaired = begun("a"), begun("a", weights__repair=True)
    assert plain[0] != repaired[0] and not same(plain[1], repaired[1])
    again = begun("b", weights__repair=True)
    assert again[0] == repaired[0] and same(again[1], repaired[1])


def test_a_maker_repairs_all_its_students_by_one_calibration(
    teachers: Callable[[str], Teacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Calibration] = []
    monkeypatch.setattr(f"{Maker.__module__}.repair", lambda _, structure, by: used.append(by))
    bench = Bench(teachers("bert"), tmp_path, chosen(recovery__steps=0, weights__repair=True))
    for _ in range(2):
        bench.begin()
        shutil.rmtree(bench.folder)
    assert len(used) == 2 and used[0] is used[1]


PARTS: dict[str, dict[str, Any]] = {
    "uncut": {},
    "cut": CUT,
    "hidden size": {"hidden.keep": 0.5, "hidden.importance": "magnitude"},
    "low rank": {"rank.keep": 0.25},
    "shared": {"sharing.groups": 2, "sharing.start": "mean"},
}
PARTS["all"] = {k: v for own in PARTS.values() for k, v in own.items()} | {"layers.keep": 1.0}


@pytest.mark.parametrize("name", ["bert", "gpt2", TIED, UNTIED])
@pytest.mark.parametrize("parts", PARTS)
def test_what_is_read_back_is_what_was_written(
    teachers: Callable[[str], Teacher], name: str, parts: str, tmp_path: Path
) -> None:
    teacher = teachers(name)
    cut = {f"{kind}.importance": "magnitude" for kind in ("heads", "ffn")}
    plan = planned(teacher, SETTINGS.candidate(cut | PARTS[parts]))
    model = first(teacher.model, teacher.family, plan, "copied")
    Student(tmp_path / "s", plan, config_of(teacher.model)).begun(model)
    torch.manual_seed(1)
    loaded_student = Student.load(tmp_path / "s")
    loaded = loaded_student.model()
    assert loaded_student.plan == plan and type(loaded) is type(teacher.model)
    assert same(loaded, model.eval())
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs()).logits, model(**inputs()).logits)
    stored = sum(tensor.numel() for tensor in load_file(tmp_path / "s" / WEIGHTS).values())
    assert stored == sum(p.numel() for p in model.parameters())


def name_of(
    teacher: Teacher,
    plan: Plan,
    candidate: Candidate,
    lineage: str,
    seed: int,
    trunk: bool = False,
) -> str:
    maker = Maker(teacher, Path("nowhere"), lineage, seed)
    return maker.trunk_of(plan, candidate) if trunk else maker.id_of(plan, candidate)


@pytest.fixture(scope="module")
def named(teachers: Callable[[str], Teacher]) -> Callable[..., str]:
    """The name of a student, or of its trunk, that differs from the usual one in what is given."""
    teacher = teachers("bert")

    def name(
        lineage: str = "teacher",
        seed: int = 0,
        text: TransferSet | None = None,
        cleaned: TransferSet | None = None,
        plan: Plan | None = None,
        trunk: bool = False,
        **settings: Any,
    ) -> str:
        candidate = SETTINGS.candidate(chosen(**settings))
        own = teacher
        if text is not None or cleaned is not None:
            texts = text or teacher.transfer, teacher.scratch.with_name("other"), cleaned
            own = Teacher(teacher.model, teacher.family, *texts)
        plan = plan or planned(teacher, candidate)
        return name_of(own, plan, candidate, lineage, seed, trunk)

    return name


TEXT = transfer("bert")
OTHERS: dict[str, dict[str, Any]] = {
    "teacher": {"lineage": "another"},
    "seed": {"seed": 1},
    "a token": {"text": replace(TEXT, rows=[TEXT.rows[0] + 1, *TEXT.rows[1:]])},
    "one row as two": {
        "text": replace(TEXT, rows=[TEXT.rows[0][:, :1], TEXT.rows[0][:, 1:], *TEXT.rows[1:]])
    },
    "a label": {"text": replace(TEXT, labels=np.array([1 - TEXT.labels[0], *TEXT.labels[1:]]))},
    "cleaned text": {"cleaned": TEXT},
    "layers": {"layers__keep": 0.34},
    "as many heads, but others": {
        "plan": Plan("bert", Structure((Layer(0, (0, 1), (1, 2)), Layer(2, (0, 3), (1, 2)))))
    },
    "as many heads": {
        "plan": Plan("bert", Structure((Layer(0, (0, 1), (1, 2)), Layer(2, (0, 2), (1, 2)))))
    },
    "a part": {"rank__keep": 0.25},
    "steps": {"recovery__steps": 13},
    "learning rate": {"recovery__learning_rate": 2e-2},
    "objectives": {"recovery__objectives": ["logits", "cosine"]},
    "start": {"weights__start": "pooled"},
    "training under int8": {"quantization__trained": True},
    "the usual": {},
}
ALIKE: dict[str, dict[str, Any]] = {
    "number format": {"quantization__scheme": "int8-dynamic"},
    "its block": {"quantization__scheme": "int4-weights", "quantization__block_size": 128},
    "what it spares": {"quantization__scheme": "int8-static", "quantization__spared": "ends"},
    "defaults": {"recovery__temperature": 2.0, "recovery__data_share": 1},
    "the usual start": {"weights__start": "copied"},
    "what means nothing": {"recovery__redraw_steps": 7, "recovery__logits_weight": 5.0},
}


def test_a_name_follows_from_teacher_text_plan_training_and_seed(
    named: Callable[..., str],
) -> None:
    names = {what: named(**how) for what, how in OTHERS.items()}
    assert len(set(names.values())) == len(OTHERS), names


@pytest.mark.parametrize("what", ALIKE)
def test_a_name_follows_from_nothing_else(named: Callable[..., str], what: str) -> None:
    assert named(**ALIKE[what]) == named()


def test_students_that_differ_in_steps_alone_share_a_trunk(named: Callable[..., str]) -> None:
    trunks = {what: named(trunk=True, **how) for what, how in OTHERS.items()}
    assert trunks.pop("steps") == trunks["the usual"] != named()
    assert len(set(trunks.values())) == len(trunks)
    untrained = {"recovery__steps": 0}
    assert named(trunk=True, **untrained) == named(**untrained) not in trunks.values()


def test_candidates_that_come_to_the_same_are_one_student(
    teachers: Callable[[str], Teacher],
) -> None:
    """Another criterion that keeps the same heads, another start where nothing is cut, other
    training where there is none."""
    teacher = teachers("bert")
    full = Plan("bert", Structure.full([HEADS] * LAYERS, [FFN] * LAYERS))
    cut = Plan("bert", Structure(full.structure.layers[:2]))

    def name(plan: Plan, **settings: Any) -> str:
        choices = {key.replace("__", "."): value for key, value in settings.items()}
        return name_of(teacher, plan, SETTINGS.candidate(choices), "teacher", 0)

    half = {"layers__keep": 0.5, "recovery__steps": 9}
    assert name(cut, **half) == name(cut, **half, ffn__keep=0.9, ffn__importance="magnitude")
    pooled = {"ffn__keep": 0.99, "weights__start": "pooled"}
    assert name(full, **pooled) == name(full) != name(cut, **pooled) != name(cut)
    repaired = {"ffn__keep": 0.99, "weights__repair": True}
    assert name(full, **repaired) == name(full) != name(cut, **repaired) != name(cut)
    assert name(cut) == name(cut, recovery__steps=0, recovery__learning_rate=0.1)


def test_draws_follow_from_the_name_and_batches_from_the_seed(
    teachers: Callable[[str], Teacher], tmp_path: Path
) -> None:
    benches = [
        Bench(teachers("bert"), tmp_path / folder, chosen(), lineage, seed)
        for folder, lineage, seed in (("a", "x", 3), ("b", "x", 3), ("c", "y", 3), ("d", "x", 4))
    ]
    recoveries = [recovery for bench in benches if (recovery := bench.begin().recovery)]
    one, alike, *others = (recovery.lesson.random.initial_seed() for recovery in recoveries)
    assert one == alike and len({one, *others}) == 3
    drawn = [[next(recovery.batches) for _ in range(4)] for recovery in recoveries]
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]


SCHEDULED = "annealed-logits"
EVERY = {
    "recovery.objectives": [objective for objective in OBJECTIVES if objective != SCHEDULED],
    "recovery.label_phase": 0.2,
}
STOPPED: dict[str, tuple[str, dict[str, Any]]] = {
    **{objective: ("bert", {"recovery.objectives": [objective]}) for objective in OBJECTIVES},
    "all, under int8": ("bert", EVERY | {"quantization.trained": True}),
    "a tied head": (TIED, EVERY | {"quantization.trained": True}),
    "sparse embeddings beside a head": (UNTIED, EVERY | {"quantization.trained": True}),
    "coded weights": (
        TIED,
        EVERY | {"codes.format": "centroids", "codes.trained": True, "codes.noise": 0.5},
    ),
    "parts": ("bert", EVERY | PARTS["all"]),
    "labels alone": ("bert", {"recovery.hard_label_weight": 1.0}),
    "labels alone for half of it": ("bert", {"recovery.label_phase": 0.5}),
    "layers as one vector": (
        "bert",
        {"recovery.objectives": ["random-layers"], "recovery.random_layers": "concatenated"},
    ),
}


@pytest.mark.parametrize("case", STOPPED)
def test_going_on_from_fewer_steps_and_stopping_after_every_one_changes_no_bit(
    teachers: Callable[[str], Teacher], looks: Callable[[int], None], case: str, tmp_path: Path
) -> None:
    """Training that is scheduled by all its steps begins anew each time."""
    name, settings = STOPPED[case]
    settings = chosen() | ({} if name in (TIED, UNTIED) else DISTURBED) | settings
    made = [Bench(teachers(name), tmp_path / folder, settings) for folder in ("a", "b")]
    at_once, state = made[0].train()

    looks(1)
    shorter = Bench(teachers(name), tmp_path / "b", settings | {"recovery.steps": FEWER})
    shorter.train()
    label_phase = settings.get("recovery.label_phase") == 0.5
    short, shared = (3, 6) if label_phase else (SHORT_TRUNK, TRUNK)
    if case == SCHEDULED:
        assert made[1].stop() == made[1].begin().done == 0
    else:
        assert [made[1].stop() for _ in range(short, shared)] == list(range(short, shared))
        assert made[1].stop() == made[1].begin().done == shared
    in_parts, state_in_parts = made[1].train()

    assert state.keys() == state_in_parts.keys()
    assert [key for key in state if not torch.equal(state[key], state_in_parts[key])] == []
    assert at_once.id == in_parts.id and same(at_once.model(), in_parts.model())
    assert replace(in_parts, folder=at_once.folder) == at_once
    assert (at_once.steps, at_once.sealed) == (STEPS, True)
    by_int8 = at_once.plan.part("int8-training") is not None
    assert by_int8 == settings.get("quantization.trained", False)


def test_a_trunk_that_is_longer_than_a_student_is_left_as_it_is(
    teachers: Callable[[str], Teacher], looks: Callable[[int], None], tmp_path: Path
) -> None:
    looks(1)
    settings = chosen(recovery__steps=FEWER)
    alone, after = (Bench(teachers("bert"), tmp_path / folder, settings) for folder in ("a", "b"))
    Bench(teachers("bert"), tmp_path / "b", chosen()).train()
    trunk = files(after.trunk)
    assert after.stop() == after.begin().done == 0
    assert same(after.train()[0].model(), alone.train()[0].model())
    assert files(after.trunk) == trunk


def test_with_a_scheduled_modifier_nothing_is_shared(
    teachers: Callable[[str], Teacher], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Modifier, "scheduled", True)
    begun = [
        Bench(teachers("bert"), tmp_path, chosen(quantization__trained=trained)).begin().recovery
        for trained in (False, True)
    ]
    assert [recovery and recovery.shared for recovery in begun] == [TRUNK, 0]


def test_a_kill_costs_the_steps_since_the_last_pause(
    teachers: Callable[[str], Teacher],
    looks: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    bench, seen = Bench(teachers("bert"), tmp_path, chosen()), list[int]()
    making = bench.begin()

    def killed(_: float) -> bool:
        seen.append(making.done)
        if making.done == 6:
            raise KeyboardInterrupt
        return True

    looks(2)
    monkeypatch.setattr(engine_making, "_SAVED_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        bench.maker.train(making, STEPS, killed)
    assert seen == [2, 4, 6] and bench.begin().done == 4


def test_a_pause_that_cannot_be_written_leaves_the_one_before(
    teachers: Callable[[str], Teacher],
    looks: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    bench = Bench(teachers("bert"), tmp_path, chosen())
    looks(4)
    bench.stop()
    before = files(bench.trunk)

    def full(*_: Any) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(student, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        bench.stop()
    assert files(bench.trunk) == before
    assert [path.name for path in tmp_path.iterdir()] == [bench.trunk.name]


def test_killed_while_the_pause_before_is_deleted_it_is_whole(
    teachers: Callable[[str], Teacher],
    looks: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    bench = Bench(teachers("bert"), tmp_path, chosen())
    looks(4)
    bench.stop()

    def killed(folder: Path, **_: Any) -> None:
        if (folder / WEIGHTS).is_file():
            (folder / WEIGHTS).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.stop()
    assert bench.begin().done == 8


@pytest.mark.parametrize(
    "damage", ["by another technique", "student.json", "training.safetensors", WEIGHTS]
)
def test_a_folder_that_is_no_whole_student_is_begun_anew(
    teachers: Callable[[str], Teacher], looks: Callable[[int], None], damage: str, tmp_path: Path
) -> None:
    bench = Bench(teachers("bert"), tmp_path, chosen())
    bench.begin()
    before, record = files(bench.trunk), bench.trunk / "student.json"
    looks(4)
    bench.stop()
    if damage == "by another technique":
        told = json.loads(record.read_text())
        told["plan"]["parts"] = [{"technique": "of tomorrow"}]
        record.write_text(json.dumps(told))
    else:
        file = bench.trunk / damage
        file.write_bytes(file.read_bytes()[:-20])
    assert bench.begin().done == 0 and files(bench.trunk) == before


def test_a_sealed_student_with_damaged_weights_is_made_again(
    teachers: Callable[[str], Teacher], tmp_path: Path
) -> None:
    bench = Bench(teachers("bert"), tmp_path, chosen())
    bench.train()
    before, weights = files(bench.folder), bench.folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-20])
    bench.train()
    assert files(bench.folder) == before


def test_only_students_that_are_kept_stay(
    teachers: Callable[[str], Teacher], tmp_path: Path
) -> None:
    benches = [
        Bench(teachers("bert"), tmp_path, chosen(recovery__learning_rate=rate))
        for rate in (1e-4, 1e-3)
    ]
    for bench in benches:
        bench.train()
    kept = {benches[0].trunk.name, benches[1].folder.name}
    benches[0].maker.keep([None, *kept])
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("name", ["bert", TIED, "llama"])
def test_artifacts_of_earlier_versions_load(name: str, tmp_path: Path) -> None:
    """Their config says family and sizes where it says a plan today."""
    structure = Structure((Layer(0, (), (1, 2)), Layer(2, (1, 3), ())))
    smaller = MODELS[name].family.cut(build(name), structure)
    batch = Batch({key: value.numpy() for key, value in inputs().items()})
    (tmp_path / "tokenizer").mkdir()
    folder = tmp_path / "t001"
    candidate = SETTINGS.candidate({})
    export_model(smaller, structure, candidate, folder, [batch], tmp_path / "tokenizer")
    config: Any = smaller.config
    original = config.to_dict() | {"architectures": [type(smaller).__name__]}
    family = original.pop("model_type")
    older = {"family": family, "original": original, "sizes": structure.sizes()}
    (folder / "config.json").write_text(json.dumps(REFUSED | older))
    loaded = load_model(folder)
    assert type(loaded) is type(smaller) and same(loaded, smaller)
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs()).logits, smaller(**inputs()).logits)
    older["sizes"] = structure.sizes() | {"heads": [1, 2]}
    (folder / "config.json").write_text(json.dumps(REFUSED | older))
    with pytest.raises(UserError, match=rf"^{folder} cannot be loaded: "):
        load_model(folder)

"""The conformance suites find what they are there to find; ``test_conformance`` runs ours through
them."""

from __future__ import annotations

from pathlib import Path

import pytest

MUST_FAIL = {
    "Techniques": {
        "noisy": {"test_same_seed_same_weights"},
        "widening": {"test_students_never_grow"},
        "restless": {"test_defaults_leave_the_plan_and_every_bit"},
        "int8-training": {
            "test_stopping_and_going_on_changes_no_bit",
            "test_what_trains_along_acts_in_training_alone",
        },
    },
    "Objectives": {
        "teacher-too": {"test_a_loss_is_a_finite_number_that_pulls_the_student"},
        "drawn": {"test_the_same_seed_loses_the_same", "test_stopping_and_going_on_changes_no_bit"},
        "rowwise": {"test_a_loss_is_a_finite_number_that_pulls_the_student"},
        "offset": {"test_a_student_that_is_its_teacher_loses_nothing"},
        "hurried": {"test_training_begins_alike_whatever_steps_are_to_come"},
    },
    "Families": {
        "bert": {
            "test_every_matrix_of_a_layer_is_claimed_once",
            "test_what_is_cut_is_gone",
            "test_parts_can_be_put_back",
        }
    },
    "Formats": {
        "half": {"test_weights_have_the_bytes_it_says"},
        "coarse": {"test_a_file_runs_and_answers_nearly_as_fp32"},
    },
    "Tasks": {
        "text-classification": {
            "test_splits_share_no_text",
            "test_a_model_loses_nothing_against_itself",
        }
    },
    "Devices": {
        "shallow": {"test_a_deeper_model_is_slower", "test_answers_are_those_of_the_model"}
    },
    "Samplers": {
        "stray": {
            "test_never_leaves_the_space",
            "test_corners_come_first",
            "test_the_seed_decides",
        }
    },
}
"""Suite -> faulty member -> the tests that must find it."""


class Failures:
    """A plugin that keeps what failed: (suite, test, what it ran for)."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            _, suite, test = report.nodeid.split("::")
            name, _, given = test.partition("[")
            self.failed.append((suite.removeprefix("Test"), name, given))


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str]]:
    settings = tmp_path_factory.mktemp("faulty") / "pytest.ini"
    settings.write_text("[pytest]\n", encoding="utf-8")
    plugin = Failures()
    options = ["-q", "--tb=no", "--noconftest", "-p", "no:cacheprovider", "-c", str(settings)]
    pytest.main([str(Path(__file__).with_name("faulty_members.py")), *options], plugins=[plugin])
    return plugin.failed


@pytest.mark.parametrize(
    ("suite", "member"), [(suite, member) for suite, rows in MUST_FAIL.items() for member in rows]
)
def test_faults_are_found(failures: list[tuple[str, str, str]], suite: str, member: str) -> None:
    of_suite = [(test, given) for own, test, given in failures if own == suite]
    failed = {test for test, given in of_suite if member in given}
    assert MUST_FAIL[suite][member] <= failed

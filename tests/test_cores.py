"""One user of a device at a time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import IO

import pytest

from autocompress import HardwareProfile, SearchResult
from autocompress.cores import reserved
from autocompress.errors import UserError
from autocompress.hardware.host import LocalHost
from autocompress.hardware.onnx_device import OnnxDevice

PROFILE = HardwareProfile.load("cpu-1-thread")
QUICK = replace(PROFILE, trial_seconds=0.1, final_seconds=0.1, target_precision=0.5)


HOLDER = """
import sys
from autocompress.cores import reserved
print("asking", flush=True)
with reserved(alone="together" not in sys.argv[1]):
    open(sys.argv[2], "a").write(sys.argv[1] + " in\\n")
    print("in", flush=True)
    sys.stdin.readline()
    open(sys.argv[2], "a").write(sys.argv[1] + " out\\n")
"""


class Holder:
    """Another process that reserves the cores until it is told to let go."""

    def __init__(self, name: str, log: Path, temporary: Path) -> None:
        command = [sys.executable, "-c", HOLDER, name, str(log)]
        environment = {**os.environ, "AUTOCOMPRESS_CACHE": str(temporary)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ended(self) -> int:
        return self.process.wait(timeout=60)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the lock that no other test and no search on this machine uses."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    return tmp_path


def test_a_second_process_waits_until_the_first_lets_go(temporary: Path) -> None:
    log = temporary / "log"
    first = Holder("first", log, temporary)
    assert [first.says(), first.says()] == ["asking", "in"]
    [lock] = temporary.glob("*.lock")
    with lock.open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second = Holder("second", log, temporary)
    assert second.says() == "asking"
    second.let_go()  # as soon as it is in
    first.let_go()
    assert (first.ended(), second.ended()) == (0, 0)
    assert log.read_text().splitlines() == ["first in", "first out", "second in", "second out"]


def test_workers_hold_the_cores_together_and_a_timing_comes_before_the_next_of_them(
    temporary: Path,
) -> None:
    log = temporary / "log"
    names = ["first together", "second together", "alone", "third together"]
    first, second = (Holder(name, log, temporary) for name in names[:2])
    assert [first.says(), first.says(), second.says(), second.says()] == ["asking", "in"] * 2
    alone = Holder("alone", log, temporary)
    assert alone.says() == "asking"
    [gate] = temporary.glob("*.gate")
    with gate.open("w") as file:
        while _is_free(file):  # until it waits
            time.sleep(0.01)
    third = Holder("third together", log, temporary)
    assert third.says() == "asking"
    for holder in (alone, third):  # as soon as they are in
        holder.let_go()
    for holder in (first, second):
        holder.let_go()
        assert holder.ended() == 0
    assert (alone.ended(), third.ended()) == (0, 0)
    told = log.read_text().splitlines()
    assert sorted(told[:2]) == ["first together in", "second together in"]
    assert told[4:] == ["alone in", "alone out", "third together in", "third together out"]


def _is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def test_another_device_waits_for_none_of_this_machine(temporary: Path) -> None:
    first = Holder("first", temporary / "log", temporary)
    assert [first.says(), first.says()] == ["asking", "in"]
    with reserved("ssh://board"):
        assert len(list(temporary.glob("*.lock"))) == 2
    first.let_go()
    assert first.ended() == 0


def test_a_process_that_is_killed_lets_go(temporary: Path) -> None:
    first = Holder("first", temporary / "log", temporary)
    assert [first.says(), first.says()] == ["asking", "in"]
    first.process.kill()
    first.ended()
    with reserved():
        pass


def test_whoever_waits_long_says_for_what_once(
    temporary: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Holder("first", temporary / "log", temporary)
    assert [first.says(), first.says()] == ["asking", "in"]
    monkeypatch.setattr("autocompress.cores.PATIENCE_S", 0.01)
    Timer(0.3, first.let_go).start()
    with reserved():
        pass
    assert first.ended() == 0
    with reserved("ssh://board"):
        pass
    waiting = "waiting until another autocompress process is done with this machine"
    assert [record.getMessage() for record in caplog.records] == [waiting]


def test_the_lock_is_the_users_own_and_left_as_it_is(temporary: Path) -> None:
    with reserved():
        pass
    [lock] = temporary.glob("*.lock")
    assert lock.stat().st_mode & 0o777 == 0o600
    lock.write_text("kept")
    with reserved():
        pass
    assert lock.read_text() == "kept"


@pytest.mark.parametrize("unfit", ["a link", "no folder"])
def test_where_the_cache_cannot_hold_the_lock(
    unfit: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in a folder of the user's own for temporary files, or nowhere."""
    with reserved():
        pass
    [lock] = temporary.glob("*.lock")
    own = temporary / f"autocompress-{os.getuid()}"
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    if unfit == "a link":
        lock.unlink()
        lock.symlink_to(temporary / "target")
    else:
        (temporary / "file").write_text("")
        monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(temporary / "file"))
    with reserved():
        assert lock.name in [path.name for path in own.iterdir()]
    assert own.stat().st_mode & 0o777 == 0o700
    assert not (temporary / "target").exists()
    own.chmod(0o770)
    with pytest.raises(UserError, match=r"^no lock can be written: set AUTOCOMPRESS_CACHE"):
        reserved().__enter__()


def test_the_cores_are_free_again_after_an_error(temporary: Path) -> None:
    with pytest.raises(ZeroDivisionError), reserved():
        raise ZeroDivisionError
    with reserved():
        pass


def test_a_timing_waits_for_whoever_trains(temporary: Path, by_task: SearchResult) -> None:
    """The lock is held while the agent times."""
    held: list[bool] = []

    class Host(LocalHost):
        def run_agent(self, request: str, limit_s: float) -> str:
            locks = list(temporary.glob("*.lock"))
            with (locks[0] if locks else temporary / "none").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.append(False)
                except BlockingIOError:
                    held.append(True)
            return super().run_agent(request, limit_s)

    device = OnnxDevice(QUICK, [8], Host())
    device.time(by_task.run / "models" / "t000", [], final=False)
    assert held == [False, True]  # to describe takes none of the cores

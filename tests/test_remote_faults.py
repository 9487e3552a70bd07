"""Boards reached through wrappers that misbehave as devices, logins and users do."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import AutocompressError, CandidateFailed, DeviceLost, UserError
from autocompress.files import sha256
from autocompress.hardware import remote
from autocompress.hardware.host import AGENT_ENVIRONMENT, Host, ask
from autocompress.hardware.patience import Patience, until
from autocompress.hardware.remote import Board
from tests.test_agent import graph
from tests.test_remote import (
    BATCH,
    DESCRIBE,
    SCORE,
    folder_of,
    goes,
    is_running,
    lines,
    quick_python,
    script,
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))


@pytest.fixture
def quick(tmp_path: Path) -> str:
    return quick_python(tmp_path / "quick")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return graph(tmp_path / "model.onnx")


def wrapper(path: Path, text: str, python: str = sys.executable) -> Board:
    """A board reached through a script, which gets the device's line as its argument."""
    return Board(f"cmd:{shlex.quote(script(path, text))}", python)


def test_a_board_never_used_is_never_contacted(tmp_path: Path) -> None:
    with wrapper(tmp_path / "wrapper", f"touch {tmp_path}/contacted"):
        pass
    assert not (tmp_path / "contacted").exists()


def test_a_board_that_let_nobody_in_is_not_contacted_again(tmp_path: Path) -> None:
    text = f'echo x >> {tmp_path}/tries; echo "Host key verification failed." >&2; exit 255'
    with wrapper(tmp_path / "wrapper", text) as board, pytest.raises(UserError):
        ask(board, DESCRIBE)
    assert lines(tmp_path / "tries") == 1


def test_a_file_is_sent_once(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    host: Host = wrapper(tmp_path / "wrapper", f'echo "$1" >> {log}; exec sh -c "$1"')
    for _ in range(2):
        ask(host, SCORE, [model, model], [BATCH])
    host.close()
    commands = log.read_text()
    assert [
        commands.count(f"cat > {name}.part") for name in ("agent.py", f"{sha256(model)}.onnx")
    ] == [1, 1]
    assert commands.count("cat > ") == 3


@pytest.mark.parametrize(
    ("complaint", "at_first", "later"),
    [
        ("ssh: connect to host pi port 22: Connection refused", UserError, DeviceLost),
        (
            "ssh: Could not resolve hostname pi: Name or service not known",
            UserError,
            DeviceLost,
        ),
        ("ssh: connect to host pi port 22: No route to host", UserError, DeviceLost),
        ("Error: No such container: board", DeviceLost, DeviceLost),
        ("Host key verification failed.", UserError, DeviceLost),
        ("pi@pi: Permission denied (publickey).", UserError, DeviceLost),
    ],
)
def test_what_cannot_be_reached_at_all_is_an_error_and_what_was_there_is_tried_again(
    complaint: str,
    at_first: type[AutocompressError],
    later: type[AutocompressError],
    quick: str,
    tmp_path: Path,
) -> None:
    away, tries = tmp_path / "away", tmp_path / "tries"
    board = wrapper(
        tmp_path / "wrapper",
        f'if [ -e {away} ]; then echo x >> {tries}; echo "{complaint}" >&2; exit 255; fi\nexec sh -c "$1"',  # noqa: E501
        quick,
    )
    for present, error in ((False, at_first), (True, later)):
        if present:
            away.unlink()
            ask(board, DESCRIBE)
            tries.unlink()
        away.touch()
        with pytest.raises(error) as caught:
            ask(board, DESCRIBE)
        assert type(caught.value) is error and str(caught.value).startswith(board.location)
        by_hand = at_first is UserError and not remote._UNREACHABLE.search(complaint)
        assert lines(tries) == (1 if error is UserError or by_hand else 3)
        assert (
            error is UserError
            or by_hand
            or str(caught.value) == f"{board.location}: connection lost: {complaint}"
        )
    away.unlink()
    board.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "/nowhere/python: "),
        ('exec {python} -S "$@"', "No module named 'numpy'"),
        (
            "echo 'SyntaxError: future feature annotations is not defined' >&2; exit 1",
            "SyntaxError: future feature",
        ),
    ],
    ids=["no Python", "no numpy", "an old Python"],
)
def test_what_a_board_lacks_is_told(text: str | None, message: str, tmp_path: Path) -> None:
    python = (
        "/nowhere/python"
        if text is None
        else script(tmp_path / "python", text.format(python=sys.executable))
    )
    with Board("cmd:sh -c", python) as board, pytest.raises(UserError) as caught:
        ask(board, DESCRIBE)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith(
        f"with onnxruntime and numpy; run there: {python} -m pip install onnxruntime numpy"
    )


def test_an_answer_to_another_request_is_refused(quick: str, tmp_path: Path) -> None:
    old = tmp_path / "old"
    text = (
        f"[ -e {old} ] || {{ {quick} > {old}; cat {old}; exit; }}; cat > {tmp_path}/request; "
        f"cat {old}"
    )
    with Board("cmd:sh -c", script(tmp_path / "python", text)) as board:
        ask(board, DESCRIBE)
        with pytest.raises(
            CandidateFailed, match=r"^the device answered another request than the one asked$"
        ):
            ask(board, DESCRIBE)


@pytest.mark.parametrize("kind", ["onnx", "npz"])
@pytest.mark.parametrize("damage", [b"", b"no graph", None], ids=["empty", "other", "gone"])
def test_a_file_damaged_on_the_board_is_sent_again(
    kind: str, damage: bytes | None, model: Path
) -> None:
    with Board("cmd:sh -c", sys.executable) as board:
        scores = ask(board, SCORE, [model], [BATCH])["npy"]
        [placed] = folder_of(board).glob(f"*.{kind}")
        if damage is None:
            placed.unlink()
        else:
            placed.write_bytes(damage)
        assert ask(board, SCORE, [model], [BATCH])["npy"] == scores


def test_a_board_that_damages_files_is_lost(model: Path, tmp_path: Path) -> None:
    """No fault of the candidate; what it would answer from such a file counts for nothing."""
    damage = "for f in *.onnx; do echo >> $f; done"
    text = f'echo x >> {tmp_path}/runs; {damage}; exec {sys.executable} "$@"'
    board = Board("cmd:sh -c", script(tmp_path / "python", text))
    with pytest.raises(DeviceLost) as caught, board:
        ask(board, SCORE, [model], [BATCH])
    assert str(caught.value) == "cmd:sh -c: the device read other files than those sent"
    assert lines(tmp_path / "runs") == 2


def test_a_file_that_arrives_incomplete_is_refused(quick: str, tmp_path: Path) -> None:
    text = (
        'case "$1" in *"cat > "*probe*) exec head -c 100 | sh -c "$1";; *) exec sh -c "$1";; esac'
    )
    with wrapper(tmp_path / "wrapper", text, quick) as board:
        with pytest.raises(CandidateFailed) as caught:
            board.place(Path(__file__), "probe")
        reason = "it arrived incomplete (the wrapper must pass on standard input)"
        assert str(caught.value) == f"{board.location}: probe cannot be written there: {reason}"
        assert ask(board, DESCRIBE)["cores"] == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Board]:
    """A board with room for three files, whose Python lists its folder."""
    (tmp_path / "bin").mkdir()
    full = 'echo "cat: write error: No space left on device" >&2; exit 1'
    script(
        tmp_path / "bin" / "cat",
        f'echo x >> {tmp_path}/tries; [ "$(ls | wc -l)" -le 3 ] || {{ {full}; }}; exec {shutil.which("cat")}',  # noqa: E501
    )
    with wrapper(
        tmp_path / "wrapper",
        f'export PATH={tmp_path}/bin:$PATH; exec sh -c "$1"',
        script(tmp_path / "python", "ls"),
    ) as board:
        yield board


def test_a_full_board_makes_room_of_what_is_not_needed(small_disk: Board) -> None:
    for name in ("1.onnx", "2.onnx", "3.onnx"):
        small_disk.place(Path(__file__), name)
    assert small_disk.run_agent('{"models": ["3.onnx"]}', 60).split() == ["3.onnx", "agent.py"]
    assert small_disk.run_agent('{"models": ["2.onnx", "3.onnx"]}', 60).split() == [
        "2.onnx",
        "3.onnx",
        "agent.py",
    ]
    assert small_disk.run_agent('{"models": ["1.onnx", "3.onnx"]}', 60).split() == [
        "1.onnx",
        "3.onnx",
        "agent.py",
    ]


def test_a_board_too_small_fails_the_candidate_without_another_try(
    small_disk: Board, tmp_path: Path
) -> None:
    for name in ("1.onnx", "2.onnx", "3.onnx"):
        small_disk.place(Path(__file__), name)
    (tmp_path / "tries").unlink()
    with pytest.raises(CandidateFailed) as caught:
        small_disk.run_agent('{"models": ["1.onnx", "2.onnx", "3.onnx"]}', 60)
    message = "2.onnx cannot be written there: cat: write error: No space left on device"
    assert (
        str(caught.value) == f"{small_disk.location}: {message}" and lines(tmp_path / "tries") == 2
    )


def test_logins_that_greet_and_have_odd_temporary_folders_of_their_own_are_fine(
    quick: str, tmp_path: Path
) -> None:
    odd = tmp_path / "it's a $HOME"
    odd.mkdir()
    text = (
        f'echo Welcome; export TMPDIR={shlex.quote(str(odd))}/$$; mkdir "$TMPDIR"; exec sh -c "$1"'
    )
    with wrapper(tmp_path / "wrapper", text, quick) as board:
        assert folder_of(board).parent.parent == odd and ask(board, DESCRIBE)["cores"] == 3
    assert list(odd.glob("*/*")) == []


def test_a_device_without_a_place_for_files_is_told(tmp_path: Path) -> None:
    with (
        wrapper(
            tmp_path / "wrapper", f'export TMPDIR={tmp_path}/nowhere; exec sh -c "$1"'
        ) as board,
        pytest.raises(
            DeviceLost,
            match=rf"^{board.location}: no folder with the agent can be made there: mkdir: [^\n]+$",
        ),
    ):
        ask(board, DESCRIBE)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device is given a second and a half, and 15 to say what it is."""
    monkeypatch.setattr(
        Patience, "limit_s", lambda self, request: 1.5 if request["models"] else 15.0
    )


def hanging(path: Path, when: str) -> str:
    """A Python that answers nothing when the request fits a pattern."""
    return script(
        path,
        f"""
        request=$(cat)
        case "$request" in {when}) echo $$ >> {path}.hung; exec sleep 600;; esac
        printf %s "$request" | {sys.executable} "$@"
        """,
    )


@pytest.mark.usefixtures("impatient")
def test_a_model_that_hangs_a_board_fails_and_no_more(model: Path, tmp_path: Path) -> None:
    with Board("cmd:sh -c", hanging(tmp_path / "python", "*score*")) as board:
        with pytest.raises(CandidateFailed, match=r"^cmd:sh -c: no answer within 2 s$"):
            ask(board, SCORE, [model], [BATCH])
        [hung] = (tmp_path / "python.hung").read_text().split()
        assert not is_running(hung)
        assert ask(board, DESCRIBE)["cores"] > 0


def test_a_board_that_hangs_is_lost(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "limit_s", lambda self, request: 0.6)
    board = Board("cmd:sh -c", hanging(tmp_path / "python", "*"))
    with pytest.raises(DeviceLost, match=r"^cmd:sh -c: no answer within 1 s$"), board:
        ask(board, SCORE, [model], [BATCH])


@pytest.mark.usefixtures("impatient")
def test_when_the_time_is_up_it_is_nobodys_fault(model: Path, tmp_path: Path) -> None:
    board = Board("cmd:sh -c", hanging(tmp_path / "python", "*score*"))
    reason = r"^cmd:sh -c: no answer within 2 s, and the time is up$"
    with pytest.raises(DeviceLost, match=reason), until(lambda: 0.0), board:
        ask(board, SCORE, [model], [BATCH])


def test_a_hung_line_is_given_up_when_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not waited for a minute, three times."""
    monkeypatch.setattr(remote, "_LEAST_PATIENCE", 0.2)
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.01))
    text = f"echo x >> {tmp_path}/tries; exec sleep 600"
    with until(lambda: 0.0), wrapper(tmp_path / "wrapper", text) as board:
        with pytest.raises(DeviceLost, match="connection lost: no answer within 0 s"):
            ask(board, DESCRIBE)
        assert lines(tmp_path / "tries") == 1


def test_the_next_contact_removes_what_gone_clients_left(
    quick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fresh, in use, a link or not ours by its name stays."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    names = [f"autocompress-{digit * 32}" for digit in "0123"] + ["autocompress-1000"]
    gone, used, fresh, linked, other = (tmp_path / name for name in names)
    for folder in (gone, used, fresh, other, tmp_path / "elsewhere"):
        folder.mkdir()
        (folder / "model.onnx").touch()
    linked.symlink_to(tmp_path / "elsewhere")
    hour_ago = time.time() - 3600
    for folder in (gone, used, other, tmp_path / "elsewhere"):
        os.utime(folder, (hour_ago, hour_ago))
    with subprocess.Popen(["/bin/sleep", "600"], cwd=used) as user:
        with Board("cmd:sh -c", quick) as board:
            ask(board, DESCRIBE)
        user.kill()
    assert not gone.exists()
    for folder in (used, fresh, linked, other):
        assert (folder / "model.onnx").exists()


@pytest.mark.parametrize("end", ["", "raise KeyboardInterrupt"])
def test_nothing_is_left_at_the_end_of_the_process(end: str) -> None:
    code = (
        "from pathlib import Path; from autocompress.hardware.remote import Board;"
        f"board = Board('cmd:sh -c'); print(board.place(Path({__file__!r}), 'probe'), "
        f"flush=True); {end}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("/probe\n") and ("KeyboardInterrupt" in done.stderr) == bool(end)
    assert not Path(done.stdout.strip()).parent.exists()


def test_a_board_that_forgot_its_folder_gets_it_again_for_a_file(quick: str) -> None:
    with Board("cmd:sh -c", quick) as board:
        folder = folder_of(board)
        shutil.rmtree(folder)
        assert Path(board.place(Path(__file__), "new")) == folder / "new"
        assert sorted(path.name for path in folder.iterdir()) == ["agent.py", "new"]


def test_the_agent_gets_the_environment_that_it_has_here(tmp_path: Path) -> None:
    python = script(tmp_path / "python", "env; cat")
    with Board("cmd:sh -c", python) as board:
        output_lines = board.run_agent('{"action": "none"}', 60).splitlines()
    assert {f"{name}={value}" for name, value in AGENT_ENVIRONMENT.items()} <= set(output_lines)
    assert output_lines[-1] == '{"action": "none"}'


def test_closing_is_quiet_when_the_device_is_gone(quick: str, tmp_path: Path) -> None:
    board = wrapper(tmp_path / "wrapper", 'exec sh -c "$1"', quick)
    folder = folder_of(board)
    (tmp_path / "wrapper").unlink()
    board.close()
    assert goes(folder)  # by who waits there


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-rf", "a/b", "a b", "a\n", "$HOME", "a'b", "ü.onnx", "a;b"]
)
def test_names_with_odd_characters_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be a file's name on a device"):
        wrapper(tmp_path / "wrapper", "exit 1").place(Path(__file__), name)


@pytest.mark.parametrize(
    "location",
    [
        "",
        "board",
        "pi@board",
        "http://board",
        "SSH://board",
        "ssh:board",
        "ssh://",
        "ssh://@board",
        "ssh://pi@",
        "ssh://:22",
        "ssh://board:",
        "ssh://board:0",
        "ssh://board:65536",
        "ssh://board:ssh",
        "ssh://board/",
        "ssh://board/home/pi",
        "ssh://board?port=22",
        "ssh://board#x",
        "ssh://-oProxyCommand=touch",
        "ssh://-oProxyCommand=touch@board",
        "ssh://pi:secret@board",
        "ssh://pi:secret:secret@board:22",
        "ssh://bo ard",
        "ssh://board\n",
        "ssh://$(touch x)",
        "ssh://fe80::1",
        "ssh://[fe80::1",
        "ssh://[board]",
        "cmd:",
        "cmd:  ",
        "cmd:sh 'x",
    ],
)
def test_malformed_locations_are_refused(location: str) -> None:
    with pytest.raises(UserError, match=r"^device location [^\n]+$") as caught:
        Board(location)
    assert "secret" not in str(caught.value)


SSH = (
    "ssh -T -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=10 -o "
    "ServerAliveInterval=5 -o ServerAliveCountMax=3"
)


@pytest.mark.parametrize(
    ("location", "command"),
    [
        ("ssh://board", f"{SSH} board"),
        ("ssh://pi@board.local:2222", f"{SSH} -p 2222 pi@board.local"),
        ("ssh://10.0.0.7", f"{SSH} 10.0.0.7"),
        ("ssh://pi@[fe80::1%eth0]:22", f"{SSH} -p 22 pi@fe80::1%eth0"),
        ("cmd:docker exec -i 'my board' sh -c", "docker exec -i 'my board' sh -c"),
        ("cmd:adb shell", "adb shell"),
    ],
)
def test_locations_become_commands_and_a_missing_program_is_a_clear_error(
    location: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(words: list[str], **options: Any) -> None:
        commands.append(words)
        raise FileNotFoundError(2, "No such file or directory", words[0])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError) as caught:
        ask(Board(location), DESCRIBE)
    [[*words, line]] = commands
    assert words == shlex.split(command) and line.startswith("exec sh -c ") and "\n" not in line
    assert (
        str(caught.value) == f"{location}: {words[0]} cannot be started: [Errno 2] "
        f"No such file or directory: {words[0]!r}"
    )


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        (
            "ssh://board",
            {"python": "~/venv/bin/python"},
            "python of ssh://board is '~/venv/bin/python'; allowed is a name ",
        ),
        (
            "ssh://board",
            {"python": "venv/bin/python"},
            "python of ssh://board is 'venv/bin/python'; allowed is a name ",
        ),
        (
            "ssh://board",
            {"ssh_config": "/nowhere/config"},
            "device location 'ssh://board': no file /nowhere/config",
        ),
        (
            "cmd:adb shell",
            {"ssh_config": "/dev/null"},
            "device location 'cmd:adb shell': ssh_config is for ssh:// only",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(
    location: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        Board(location, **options)
    assert str(caught.value).startswith(message)

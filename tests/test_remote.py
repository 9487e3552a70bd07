"""Boards over a real OpenSSH server on the loopback, and through ``sh -c``; their faults are in
test_remote_faults.py."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.errors import CandidateFailed, DeviceLost, UserError
from autocompress.hardware import agent, remote
from autocompress.hardware.host import LocalHost, ask
from autocompress.hardware.remote import Board
from tests.test_agent import graph

SCORE = {"action": "score", "runtime": "onnxruntime-cpu", "threads": 1}
DESCRIBE = {"action": "describe"}
BATCH: dict[str, NDArray[np.int64]] = {
    "input_ids": np.array([[2, 7, 9]]),
    "attention_mask": np.ones((1, 3), np.int64),
}
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Server:
    """An OpenSSH server that runs, with what its client needs."""

    folder: Path
    port: int

    @property
    def logins(self) -> int:
        return (self.folder / "log").read_text().count("Accepted publickey")

    def client(self, target: Path, **options: str | Path) -> str:
        """An ssh_config in which this server is called ``board``."""
        known = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": getpass.getuser(),
            "IdentitiesOnly": "yes",
        }
        known["KexAlgorithms"] = "curve25519-sha256"
        files = {
            "IdentityFile": self.folder / "user",
            "UserKnownHostsFile": self.folder / "known",
            "GlobalKnownHostsFile": "none",
        }
        target.write_text(
            "Host board 127.0.0.1\n"
            + "".join(f'{k} "{v}"\n' for k, v in (known | files | options).items())
        )
        return str(target)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if SSHD is None:
        pytest.skip("openssh-server is not installed")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user", "stranger"):
        made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(made, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "changed").write_text(f"[127.0.0.1]:{port} {(folder / 'stranger.pub').read_text()}")
    settings = f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {folder}/host
        AuthorizedKeysFile {folder}/user.pub
        PidFile {folder}/pid
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        PermitRootLogin yes
        MaxStartups 100
    """
    config = folder / "sshd_config"
    config.write_text(settings + "PerSourcePenalties no\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    if subprocess.run([SSHD, "-t", "-f", str(config)], capture_output=True).returncode != 0:
        config.write_text(settings)
    log = folder / "log"
    with (
        log.open("w") as file,
        subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=file) as process,
    ):
        while "Server listening" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield Server(folder, port)
        process.terminate()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("remote") / "model.onnx")


@pytest.fixture(scope="module")
def scores(model: Path) -> str:
    """Of this machine."""
    encoded: str = ask(LocalHost(), SCORE, [model], [BATCH])["npy"]
    return encoded


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))


Reach = Callable[..., Board]


@pytest.fixture(params=["ssh", "cmd"])
def reach(request: pytest.FixtureRequest, tmp_path: Path) -> Reach:
    """Makes a board: this machine over ssh, or through ``sh -c``."""
    if request.param == "cmd":
        return lambda python=sys.executable: Board("cmd:sh -c", python)
    config = request.getfixturevalue("server").client(tmp_path / "ssh_config")
    return lambda python=sys.executable: Board("ssh://board", python, config)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def quick_python(path: Path) -> str:
    """A Python that answers at once with the nonce and, as ``cores``, 3."""
    return script(
        path,
        """sed 's/.*"nonce": "\\([0-9a-f]*\\)".*/{"nonce": "\\1", "sha256": [], "cores": 3}/'; echo""",  # noqa: E501
    )


def folder_of(board: Board) -> Path:
    return Path(board.place(Path(__file__), "probe")).parent


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def is_running(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def goes(folder: Path) -> bool:
    """Whether it is removed by somebody else, who takes a moment."""
    for _ in range(1500):
        if not folder.exists():
            return True
        time.sleep(0.02)
    return False


def test_a_board_describes_itself(reach: Reach) -> None:
    here = ask(LocalHost(), DESCRIBE)
    with reach() as board:
        there = ask(board, DESCRIBE)
    for key in (
        "system",
        "cpu",
        "cores",
        "features",
        "memory_bytes",
        "python",
        "onnxruntime",
        "providers",
    ):
        assert there[key] == here[key]


def test_scores_are_those_of_this_machine_bit_for_bit(
    reach: Reach, model: Path, scores: str
) -> None:
    with reach() as board:
        assert ask(board, SCORE, [model], [BATCH])["npy"] == scores


def test_models_are_timed_in_turn(reach: Reach, model: Path) -> None:
    shape = {
        "batch_size": 1,
        "lengths": [4],
        "statistic": "median",
        "confidence": 0.95,
        "target_precision": 0.5,
    }
    with reach() as board:
        request = SCORE | shape | {"action": "time", "seconds": 0.0, "memory": [True, False]}
        answer = ask(board, request, [model, model])
    assert (
        np.shape(answer["wall_ms"]) == (agent.FEWEST_PROCESSES, agent.FEWEST_ROUNDS, 2)
        and np.min(answer["wall_ms"]) > 0
    )
    assert answer["memory_bytes"][0] > 0 and answer["memory_bytes"][1] is None


def test_the_folder_is_private_and_gone_after_close(reach: Reach, tmp_path: Path) -> None:
    with reach(quick_python(tmp_path / "python")) as board:
        folder = folder_of(board)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert sorted(path.name for path in folder.iterdir()) == ["agent.py", "probe"]
        assert (folder / "probe").read_bytes() == Path(__file__).read_bytes()
    assert not folder.exists()
    board.close()
    assert ask(board, DESCRIBE)["cores"] == 3 and folder.exists()
    board.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"UserKnownHostsFile": "empty"},
            "its host key is not known; run 'ssh -F {config} {port}' once by hand to accept it",
        ),
        (
            {"UserKnownHostsFile": "changed"},
            "its host key is another than before; if it is the same device, set up anew, ",
        ),
        (
            {"IdentityFile": "stranger"},
            "Permission denied (publickey). 'ssh -F {config} {port}' must log in without a "
            "password",
        ),
        ({"Nonsense": "yes"}, "terminating, 1 bad configuration options"),
        ({"HostName": "no..host"}, "ssh: Could not resolve hostname no..host: "),
    ],
    ids=["unknown host key", "changed host key", "wrong key", "bad ssh_config", "no such host"],
)
def test_a_server_that_ssh_refuses_is_a_clear_error_and_runs_nothing(
    server: Server, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    paths: dict[str, str | Path] = {
        k: server.folder / v if k.endswith("File") else v for k, v in options.items()
    }
    config, logins = server.client(tmp_path / "ssh_config", **paths), server.logins
    location = f"ssh://127.0.0.1:{server.port}" if "HostName" not in options else "ssh://board"
    with pytest.raises(UserError) as caught, Board(location, sys.executable, config) as board:
        ask(board, DESCRIBE)
    expected = message.format(config=config, port=f"-p {server.port} 127.0.0.1")
    assert (
        expected in str(caught.value)
        and str(caught.value).startswith(f"{location}: ")
        and "\n" not in str(caught.value)
    )
    assert server.logins == logins


def test_a_port_that_refuses_is_a_clear_error_at_once(tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("ssh is not installed")
    (tmp_path / "ssh_config").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        location = f"ssh://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            UserError,
            match=rf"^{location}: ssh: connect to host 127.0.0.1 port \d+: Connection refused$",
        ):
            ask(Board(location, ssh_config=str(tmp_path / "ssh_config")), DESCRIBE)


@pytest.fixture
def cutting(tmp_path: Path, reach: Reach) -> Callable[..., Board]:
    """A board whose Python cuts the connection the first times that it is started, and goes on
    running."""

    def make(times: int, first: str = "") -> Board:
        text = f"""
            echo x >> {tmp_path}/runs
            if [ $(wc -l < {tmp_path}/runs) -le {times} ]; then
                echo $$ >> {tmp_path}/orphans
                {first}
                read -r _ _ _ parent _ < /proc/$PPID/stat
                grep -q sshd /proc/$parent/comm || parent=$PPID
                kill -9 $parent
                exec sleep 600
            fi
            exec {sys.executable} "$@"
        """
        return reach(script(tmp_path / "python", text))

    return make


def no_orphans(folder: Path) -> bool:
    """Whether what was cut off has ended; a kill takes a moment."""
    for _ in range(1500):
        if not any(is_running(pid) for pid in (folder / "orphans").read_text().split()):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("first", ["", 'rm -rf "$PWD"'], ids=["connection only", "the folder too"])
def test_a_connection_lost_once_is_made_again(
    cutting: Callable[..., Board], model: Path, scores: str, first: str, tmp_path: Path
) -> None:
    """What still ran there is ended before the next attempt, which it would disturb."""
    with cutting(1, first) as board:
        assert ask(board, SCORE, [model], [BATCH])["npy"] == scores
        assert lines(tmp_path / "runs") == 2
        assert first or no_orphans(tmp_path)
        for pid in (tmp_path / "orphans").read_text().split():
            if is_running(pid):
                os.kill(int(pid), 9)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_connection_lost_always_is_a_lost_device(
    cutting: Callable[..., Board], model: Path, tmp_path: Path
) -> None:
    with cutting(99) as board:
        folder = folder_of(board)
        with pytest.raises(DeviceLost, match=rf"^{board.location}: connection lost: [^\n]+$"):
            ask(board, SCORE, [model], [BATCH])
        assert lines(tmp_path / "runs") == 3
    assert not folder.exists() and no_orphans(tmp_path)


def test_a_board_that_forgot_its_folder_gets_it_again(
    reach: Reach, model: Path, scores: str
) -> None:
    with reach() as board:
        assert ask(board, SCORE, [model], [BATCH])["npy"] == scores
        folder = folder_of(board)
        shutil.rmtree(folder)
        assert ask(board, SCORE, [model], [BATCH])["npy"] == scores
    assert not folder.exists()


def test_a_process_that_is_killed_is_no_lost_connection(reach: Reach, tmp_path: Path) -> None:
    """As when memory runs out: it would run out again."""
    with reach(script(tmp_path / "python", f"echo x >> {tmp_path}/runs; kill -9 $$")) as board:
        with pytest.raises(CandidateFailed) as caught:
            ask(board, DESCRIBE)
        assert (
            str(caught.value)
            == f"{board.location}: the process there was killed by signal 9 (out of memory?)"
        )
    assert lines(tmp_path / "runs") == 1


KILLED = """
import sys
from pathlib import Path
from autocompress.hardware.remote import Board
location, config, file = sys.argv[1:]
board = Board(location, ssh_config=config or None)
print(board.place(Path(file), "probe"), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("way", ["ssh", "cmd"])
def test_a_client_that_is_killed_leaves_nothing(
    way: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    location, config = "cmd:sh -c", ""
    if way == "ssh":
        config = request.getfixturevalue("server").client(tmp_path / "ssh_config")
        location = "ssh://board"
    command = [sys.executable, "-c", KILLED, location, config, __file__]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], **pipes) as client:
        assert client.stdout is not None
        folder = Path(client.stdout.readline().strip()).parent
        assert (folder / "probe").exists()
        client.kill()
    assert goes(folder)

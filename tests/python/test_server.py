"""A server that the job's own processes start, share, and start again."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from native import random_array, running_server, whole

from esker._core import Checkpointer, EskerError
from esker._eskerd import live_address
from esker._server import LocalServer, local_server


def await_that(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.01)


def pid_of(directory: pathlib.Path) -> int:
    return int((directory / "LOCK").read_text())


def starts(directory: pathlib.Path) -> int:
    return (directory / "eskerd.log").read_text().count(" serves ")


class User:
    """Another process that uses the server of a directory, until it is killed or told to end."""

    _SCRIPT = """
import sys
from esker._server import local_server
print(local_server(sys.argv[1]), flush=True)
sys.stdin.read()
"""

    def __init__(self, directory: pathlib.Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._SCRIPT, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def address(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where a server is to be; it is gone at the end, with all that used it."""
    path = tmp_path / "made" / "for" / "it"
    yield path
    if live_address(path) is not None:
        os.kill(pid_of(path), signal.SIGTERM)
        await_that(lambda: live_address(path) is None)


def test_starts_on_a_new_directory_and_stops_with_its_user(directory: pathlib.Path) -> None:
    server = LocalServer(directory, timeout=60)
    checkpointer = Checkpointer(server.address, "gpt", 0, 1)
    checkpointer.save(1, [whole("a", random_array(4))], []).wait()
    del checkpointer
    assert live_address(directory) == server.address
    server.close()
    server.close()
    await_that(lambda: live_address(directory) is None)
    await_that(lambda: "stopped" in (directory / "eskerd.log").read_text())
    assert not (directory / "ADDRESS").exists()


def test_a_process_joins_once(directory: pathlib.Path) -> None:
    address = local_server(directory)
    assert local_server(str(directory)) == address
    assert local_server(directory / ".." / directory.name) == address
    assert starts(directory) == 1


def test_exactly_one_of_many_starts_it(directory: pathlib.Path) -> None:
    users = [User(directory) for _ in range(6)]
    addresses = {user.address() for user in users}
    assert addresses == {live_address(directory)}
    assert starts(directory) == 1
    for user in users:
        user.end()
    await_that(lambda: live_address(directory) is None)


def test_it_outlives_the_process_that_started_it(directory: pathlib.Path) -> None:
    starter = User(directory)
    address = starter.address()
    other = User(directory)
    assert other.address() == address
    starter.kill()
    time.sleep(1)
    assert live_address(directory) == address
    Checkpointer(address, "gpt", 0, 1)
    other.kill()
    await_that(lambda: live_address(directory) is None)
    assert starts(directory) == 1


def test_a_killed_server_is_started_again_on_its_port(directory: pathlib.Path) -> None:
    other = User(directory)
    address = other.address()
    local_server(directory)
    checkpointer = Checkpointer(address, "gpt", 0, 1)
    for step in range(1, 4):
        os.kill(pid_of(directory), signal.SIGKILL)
        checkpointer.save(step, [whole("a", random_array(1000, seed=step))], []).wait(timeout=60)
        assert local_server(directory) == live_address(directory) == address
    assert [info.step for info in checkpointer.list()] == [1, 2, 3]
    assert starts(directory) == 4
    other.end()


def test_it_is_started_again_by_those_who_are_left(directory: pathlib.Path) -> None:
    users = [User(directory) for _ in range(3)]
    address = users[0].address()
    users[1].address()
    users[2].address()
    users[0].kill()
    users[1].kill()
    killed = pid_of(directory)
    os.kill(killed, signal.SIGKILL)
    await_that(lambda: starts(directory) == 2)
    assert live_address(directory) == address and pid_of(directory) != killed
    users[2].end()
    await_that(lambda: live_address(directory) is None)


def test_a_stopped_server_stays_down_until_it_is_asked_for(directory: pathlib.Path) -> None:
    address = local_server(directory)
    os.kill(pid_of(directory), signal.SIGTERM)
    await_that(lambda: live_address(directory) is None)
    time.sleep(1.5)
    assert live_address(directory) is None
    assert local_server(directory) == live_address(directory)
    assert address and starts(directory) == 2


def test_a_new_user_waits_for_the_end_of_a_server_that_stops(directory: pathlib.Path) -> None:
    for _ in range(5):
        user = User(directory)
        address = user.address()
        assert address
        user.end()  # the server notices within 0.1 s
    assert 1 <= starts(directory) <= 5


def test_a_stale_address_is_not_believed(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    with running_server(directory.parent) as stranger:
        (directory / "ADDRESS").write_text(stranger.address + "\n")
        address = local_server(directory)
        assert address != stranger.address
        assert address == live_address(directory)


def test_joins_a_server_that_was_started_by_hand(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    with running_server(directory) as by_hand:  # its data are in a folder of this
        user = LocalServer(directory / "data", timeout=60)
        assert user.address == by_hand.address
        user.close()
        time.sleep(0.5)
        assert live_address(directory / "data") == by_hand.address


def test_the_server_s_own_words_say_why_it_does_not_start(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True)
    (directory / "FORMAT").write_text("esker-store 99\n")
    with pytest.raises(EskerError, match="can't start a server on .* has format 99") as caught:
        local_server(directory)
    assert caught.value.code == "UNAVAILABLE"
    (directory / "FORMAT").unlink()
    assert local_server(directory)


def test_gives_up_on_a_server_that_never_gets_ready(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    program = tmp_path / "eskerd"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr("esker._eskerd.program_path", lambda name: str(program))
    begin = time.monotonic()
    with pytest.raises(EskerError, match="does not serve yet: .*eskerd.log says why"):
        local_server(directory, timeout=0.5)
    assert time.monotonic() - begin < 10


_FORKS = """
import os, sys, time
from esker._server import local_server
local_server(sys.argv[1])
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(60)
print(child)
"""


def test_a_forked_child_does_not_hold_the_server(directory: pathlib.Path) -> None:
    child = int(subprocess.run([sys.executable, "-c", _FORKS, str(directory)], stdout=subprocess.PIPE, check=True).stdout)
    try:
        await_that(lambda: live_address(directory) is None)
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)

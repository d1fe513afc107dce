"""What a killed scplan had started ends a moment after it: its locks and its journal are waited for so long."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scplan.errors import Locked
from scplan.linux.processes.namespaces import Child
from scplan.linux.processes.process import start_of
from scplan.store.journal import is_at_work, left_behind
from scplan.store.locks import wait_for

_HELD_S = 0.3


@pytest.fixture
def dead_pid() -> int:
    """Of a process that has just ended."""
    child = Child(os.getpid, what="end")
    return child.result()


@contextmanager
def _held(path: Path, seconds: float) -> Iterator[None]:
    """Another process has the file locked for so long."""
    reader, writer = os.pipe()

    def hold() -> None:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(writer, b"!")
            time.sleep(seconds)

    child = Child(hold, what="hold")
    os.read(reader, 1)
    try:
        yield
    finally:
        child.abandon()
        os.close(reader)
        os.close(writer)


def _journal(directory: Path, name: str) -> Path:
    path = directory / "journal" / f"20260101T000000.000000000-{name}.jsonl"
    path.parent.mkdir()
    path.touch()
    return path


@pytest.mark.parametrize("ending", ["", "-start"])
def test_journal_of_a_killed_apply_is_left_behind_once_what_it_had_started_is_over(
    tmp_path: Path, dead_pid: int, ending: str
) -> None:
    path = _journal(tmp_path, f"{dead_pid}{ending}")
    with _held(path, _HELD_S):
        assert left_behind(str(tmp_path)) == [str(path)]


@pytest.mark.slow
def test_journal_that_a_recovery_holds_is_at_work(tmp_path: Path, dead_pid: int) -> None:
    path = _journal(tmp_path, str(dead_pid))
    with _held(path, 60):
        assert is_at_work(str(tmp_path))
        assert left_behind(str(tmp_path)) == []


@pytest.mark.parametrize("look", [is_at_work, left_behind])
def test_nobody_waits_for_an_apply_that_lives(tmp_path: Path, look: Callable[[str], object]) -> None:
    path = _journal(tmp_path, str(os.getpid()))
    with _held(path, 60):
        began = time.monotonic()
        look(str(tmp_path))
        assert time.monotonic() - began < 0.5


def test_lock_of_a_killed_holder_is_waited_for_whatever_the_time(tmp_path: Path, dead_pid: int) -> None:
    path = tmp_path / "web.lock"
    path.write_text(f"{dead_pid}\n")
    with _held(path, _HELD_S), path.open("r+") as file:
        wait_for(file.fileno(), time.monotonic(), str(path))


def test_lock_of_one_that_lives_is_not(tmp_path: Path) -> None:
    path = tmp_path / "web.lock"
    path.write_text(f"{os.getpid()}\n")
    with _held(path, 60), path.open("r+") as file:
        began = time.monotonic()
        with pytest.raises(Locked, match=str(os.getpid())):
            wait_for(file.fileno(), time.monotonic(), str(path))
        assert time.monotonic() - began < 0.5


def test_process_that_nobody_has_waited_for_yet_has_ended() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not start_of(pid)
    os.waitpid(pid, 0)
    assert not start_of(pid)
    assert start_of(os.getpid())

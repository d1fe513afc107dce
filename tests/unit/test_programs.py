"""Programs that scplan starts: none is left running, whenever scplan is asked to stop, and none begins deaf."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NoReturn

import pytest

from scplan.linux.processes.programs import run_bounded, start_detached
from scplan.linux.processes.signals import stop_requests_raise, stop_requests_wait

_ROUNDS = 25
_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_program_is_left_by_a_request_to_stop_while_it_is_started(number: signal.Signals) -> None:
    seconds = f"{600 + os.getpid() % 1000}.{number.value}"
    for _ in range(_ROUNDS):
        pid = os.fork()
        if pid == 0:
            _run_until_asked(number, ["sleep", seconds])
        # In the middle of its start, not before and not after.
        while not _children_of(pid):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert _sleeping(seconds) == []


def _run_until_asked(number: signal.Signals, command: list[str]) -> NoReturn:
    try:
        signal.signal(number, signal.SIG_DFL)
        with stop_requests_wait(), stop_requests_raise():
            run_bounded(command, _ENVIRONMENT, timeout_s=20, output_bytes=10)
        os._exit(1)
    except KeyboardInterrupt:
        os._exit(0)
    finally:
        os._exit(2)


def _children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _sleeping(seconds: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == f"sleep\0{seconds}\0".encode():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("start", ["bounded", "detached"])
def test_program_that_is_started_while_requests_wait_hears_them(tmp_path: Path, start: str) -> None:
    told = tmp_path / "told"
    command = ["sh", "-c", f"grep SigBlk /proc/self/status > {told}.new; mv {told}.new {told}"]
    with stop_requests_wait():
        if start == "bounded":
            run_bounded(command, _ENVIRONMENT, timeout_s=20, output_bytes=10)
        else:
            start_detached(command)
    deadline = time.monotonic() + 20
    while not told.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert int(told.read_text().split()[1], 16) == 0

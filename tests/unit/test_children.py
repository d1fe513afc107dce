"""Work in forked children: what comes back, and that nobody waits for one that hangs or is not needed any more."""

from __future__ import annotations

import os
import time

import pytest

from scplan.errors import KernelError, ScplanError
from scplan.linux.processes.namespaces import Child, results


def _raise(error: BaseException) -> None:
    raise error


def test_what_the_work_returns_comes_back() -> None:
    assert Child(lambda: {"pid": os.getppid()}, what="tell the parent").result() == {"pid": os.getpid()}


def test_errors_come_back_as_what_they_were() -> None:
    with pytest.raises(FileNotFoundError):
        Child(lambda: os.open("/nowhere", os.O_RDONLY), what="open").result()
    with pytest.raises(ScplanError, match="refused") as caught:
        Child(lambda: _raise(ScplanError("refused", hint="try again")), what="be refused").result()
    assert caught.value.diagnostics[0].hint == "try again"


def test_a_bug_is_told_with_its_place() -> None:
    with pytest.raises(ScplanError, match="bug in scplan") as caught:
        Child(lambda: _raise(KeyError("x")), what="stumble").result()
    assert "test_children.py" in caught.value.diagnostics[0].detail


def test_a_child_that_hangs_is_killed_in_time() -> None:
    child = Child(lambda: time.sleep(60), what="sleep", timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(KernelError, match="sleep"):
        child.result()
    assert time.monotonic() - began < 5
    assert _is_gone(child.pid)


def test_an_abandoned_child_is_ended_at_once() -> None:
    child = Child(lambda: time.sleep(60), what="sleep")
    began = time.monotonic()
    child.abandon()
    assert time.monotonic() - began < 5
    assert _is_gone(child.pid)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(child.fd)


def test_all_children_have_ended_when_one_failed() -> None:
    children = [
        Child(lambda: _raise(ScplanError("first")), what="one"),
        Child(lambda: time.sleep(0.2), what="two"),
    ]
    with pytest.raises(ScplanError, match="first"):
        results(children)
    assert all(_is_gone(child.pid) for child in children)


def _is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")

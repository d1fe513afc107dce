"""Runs the command line so that it stops at chosen lines of its own output, for a test to strike exactly there.

The command runs in a fork of the tests: what it prints is what any reader would see, and the line that says "started"
is out before the operation is begun. There is no sleeping and no hoping.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, NoReturn

from scplan.linux.syscalls import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, setns
from tests.conftest import Ran, Scplan
from tests.crash.scene import import_all

_TIMEOUT_S = 60.0


class Gate(NamedTuple):
    """When a line is printed for which `opens` is true, the command waits until `act` has returned. Once, in order."""

    opens: Callable[[str], bool]
    act: Callable[[], None]


def at_step(step: str, number: int | None = None) -> Callable[[str], bool]:
    """A line of `--json` that says so of an operation; of any operation without a number."""

    def opens(text: str) -> bool:
        event = _event(text)
        return event.get("step") == step and number in (None, event.get("number"))

    return opens


def run_with_gates(
    scplan: Scplan,
    arguments: Sequence[str],
    gates: Sequence[Gate] = (),
    *,
    uid: int | None = None,
    unshared_with: int | None = None,
    namespaces: Sequence[str] = ("user", "mnt", "net"),
) -> Ran:
    """Runs a command, with a `uid` as that user; what it printed, and its exit code as a shell would see it.

    With `unshared_with` it is the root of the user namespace of that process, and in these `namespaces` of it.
    """
    held_read, held_write = os.pipe2(os.O_CLOEXEC)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    files = [scplan.directory / f"gate.{name}" for name in ("stdout", "stderr")]
    pid = os.fork()
    if pid == 0:
        os.close(held_read)
        os.close(go_write)
        _run(scplan, arguments, gates, held_write, go_read, lambda: _become(uid, unshared_with, namespaces))
    os.close(held_write)
    os.close(go_read)
    try:
        for gate in gates:
            if not _waits(held_read):
                break
            gate.act()
            os.write(go_write, b"!")
    finally:
        # An end of input lets it go on, too: it is waited for even when `act` failed.
        os.close(go_write)
        code = _ended(pid, held_read)
        os.close(held_read)
    stdout, stderr = (path.read_text() for path in files)
    return Ran(["scplan", *arguments], code, stdout, stderr)


def _waits(held: int) -> bool:
    """Whether the command came to its next gate; False when it ended before."""
    if not select.select([held], [], [], _TIMEOUT_S)[0]:
        raise TimeoutError("the command neither came to its gate nor ended")
    return os.read(held, 1) == b"?"


def _ended(pid: int, held: int) -> int:
    """Its exit code; the pipe closes when it ends. One that does not end is killed."""
    try:
        while _waits(held):
            pass
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class _Gated(io.TextIOWrapper):
    """Standard output or error: a line for which the next gate opens is let out, and then the writer waits."""

    def __init__(self, path: str, gates: list[Gate], held: int, go: int) -> None:
        super().__init__(open(path, "wb", buffering=0), encoding="utf-8", write_through=True)  # noqa: SIM115
        self._gates, self._held, self._go = gates, held, go

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._gates and self._gates[0].opens(text):
            self._gates.pop(0)
            self.flush()
            os.write(self._held, b"?")
            os.read(self._go, 1)
        return written


def _run(
    scplan: Scplan, arguments: Sequence[str], gates: Sequence[Gate], held: int, go: int, become: Callable[[], None]
) -> NoReturn:
    """The life of the fork."""
    try:
        from scplan.cli.app import run

        os.chdir(scplan.directory)
        os.environ.update(scplan.environment)
        left = list(gates)
        sys.stdout = _Gated("gate.stdout", left, held, go)
        sys.stderr = _Gated("gate.stderr", left, held, go)
        become()
        code = run(arguments)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _become(uid: int | None, unshared_with: int | None, namespaces: Sequence[str]) -> None:
    """Another user, who may not be able to read the checkout: all that could be needed is imported before."""
    if unshared_with is not None:
        import_all()
        os.setgroups([])
        with ExitStack() as stack:
            flags = {"user": CLONE_NEWUSER, "mnt": CLONE_NEWNS, "net": CLONE_NEWNET}
            names = {name: flags[name] for name in namespaces}
            opened = {name: stack.enter_context(open(f"/proc/{unshared_with}/ns/{name}", "rb")) for name in names}
            directory = os.getcwd()
            for name, flag in names.items():
                setns(opened[name].fileno(), flag, name=name)
        os.chdir(directory)
        uid = 0
    elif uid is not None:
        import_all()
        os.setgroups([])
    if uid is None:
        return
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _event(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {}
    document: dict[str, Any] = json.loads(text)
    return document

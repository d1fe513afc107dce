"""Runs a function in a child and stops at every system call that could change something, its own children's included.

strace(1) counts the calls of each process apart, so its `when=N` can't name one call of a command that forks. Here all
processes of the command share one count: call 17 is one call, in whichever of them it is made.

Sources: ptrace(2), seccomp(2): SECCOMP_RET_TRACE stops at the calls that are not known to be harmless, and at no other.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, NoReturn

from tests.crash import calls

_PTRACE_CONT, _PTRACE_GETREGS, _PTRACE_SETREGS = 7, 12, 13
_PTRACE_GETEVENTMSG, _PTRACE_SEIZE = 0x4201, 0x4206
_O_TRACEFORK, _O_TRACEVFORK, _O_TRACECLONE, _O_TRACESECCOMP, _O_EXITKILL = 0x2, 0x4, 0x8, 0x80, 0x100000
_EVENTS_OF_BIRTH, _EVENT_SECCOMP, _EVENT_STOP = (1, 2, 3), 7, 128
_WALL = 0x40000000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
# user_regs_struct of x86-64: 27 words; the number of the call is in orig_rax, its result goes to rax.
_REGISTERS, _RAX, _ORIG_RAX = 27, 10, 15
_ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long] * 4
_libc.ptrace.restype = ctypes.c_long


class Call(NamedTuple):
    """A system call that is about to be made. `number` counts all of the run, `nth` those of its name and process.

    `process` is 0 for the command itself; its children count from 1, in the order of their birth.
    """

    number: int
    name: str
    process: int
    nth: int

    def is_same(self, other: Call) -> bool:
        """Whether it is the same call of another run; where processes run side by side, `number` varies."""
        return (self.process, self.nth, self.name) == (other.process, other.nth, other.name)


class Death(Enum):
    """Who dies at a call: the process that makes it, or all processes of the command."""

    OF_PROCESS = "process"
    OF_ALL = "all"


class Request(Enum):
    """Who is asked to stop while a call is made: the command alone, or, as ^C does, all of its processes."""

    OF_SERVICE = signal.SIGTERM
    OF_TERMINAL = signal.SIGINT


Verdict = Death | Request | int | None
"""What becomes of a call: a death before it is made, a signal meanwhile, an errno that it fails with; None: nothing."""


class Ran(NamedTuple):
    """How a run ended. `code` is None when the command itself was killed."""

    code: int | None
    output: str
    calls: tuple[Call, ...]


def run(work: Callable[[], int], decide: Callable[[Call], Verdict] = lambda _: None) -> Ran:
    """Runs `work` in a forked child, with standard output and error in one file, and asks `decide` about each call."""
    output = os.memfd_create("output")
    try:
        pid = _start(work, output)
        tracer = _Tracer(pid, decide)
        try:
            status = tracer.follow()
        finally:
            tracer.end_all()
        text = os.pread(output, 1 << 20, 0).decode(errors="replace")
        return Ran(os.WEXITSTATUS(status) if os.WIFEXITED(status) else None, text, tuple(tracer.calls))
    finally:
        os.close(output)


def _start(work: Callable[[], int], output: int) -> int:
    """The PID of the child, which is traced from its first call on."""
    go_read, go_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(go_write)
        _run_child(work, go_read, output)
    os.close(go_read)
    os.setpgid(pid, pid)
    options = _O_TRACEFORK | _O_TRACEVFORK | _O_TRACECLONE | _O_TRACESECCOMP | _O_EXITKILL
    _ptrace(_PTRACE_SEIZE, pid, 0, options)
    os.close(go_write)
    return pid


def _run_child(work: Callable[[], int], go: int, output: int) -> NoReturn:
    try:
        os.read(go, 1)
        os.close(go)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _trap_calls()
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(99)


def _trap_calls() -> None:
    """From here on every call that is not harmless stops for the tracer."""
    filters = calls.filter_program()
    array = ctypes.create_string_buffer(b"".join(filters))
    program = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(array))
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


class _Tracer:
    """Follows one command and its children, all of which are in the process group of the command."""

    def __init__(self, pid: int, decide: Callable[[Call], Verdict]) -> None:
        self.calls: list[Call] = []
        self._command = pid
        self._decide = decide
        self._order = {pid: 0}
        self._counts: Counter[tuple[int, str]] = Counter()
        self._alive = {pid}

    def follow(self) -> int:
        """The wait status of the command, when all of its processes have ended."""
        ended = 0
        while True:
            try:
                pid, status = os.waitpid(-self._command, _WALL)
            except ChildProcessError:
                return ended
            self._born(pid)
            if not os.WIFSTOPPED(status):
                self._alive.discard(pid)
                if pid == self._command:
                    ended = status
                continue
            self._stopped(pid, os.WSTOPSIG(status), status >> 16)

    def end_all(self) -> None:
        """Kills whatever is left: nothing, unless following it was interrupted."""
        for pid in sorted(self._alive, key=self._order.__getitem__):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, _WALL)

    def _born(self, pid: int) -> None:
        if pid not in self._order:
            self._order[pid] = len(self._order)
            self._alive.add(pid)

    def _stopped(self, pid: int, number: int, event: int) -> None:
        if event == _EVENT_SECCOMP:
            self._at_call(pid)
        elif event in _EVENTS_OF_BIRTH:
            message = ctypes.c_ulong()
            if _ptrace(_PTRACE_GETEVENTMSG, pid, 0, ctypes.addressof(message)):
                self._born(message.value)
        signal_to_deliver = number if event == 0 else 0
        _ptrace(_PTRACE_CONT, pid, 0, signal_to_deliver)

    def _at_call(self, pid: int) -> None:
        registers = (ctypes.c_ulong * _REGISTERS)()
        if not _ptrace(_PTRACE_GETREGS, pid, 0, ctypes.addressof(registers)):
            return  # its own command killed it: the call is not made
        arguments = tuple(registers[index] for index in _ARGUMENTS)
        name = calls.name_of(registers[_ORIG_RAX])
        if calls.only_reads(name, arguments, pid):
            return
        self._counts[pid, name] += 1
        call = Call(len(self.calls) + 1, name, self._order[pid], self._counts[pid, name])
        self.calls.append(call)
        match self._decide(call):
            case Death.OF_PROCESS:
                os.kill(pid, signal.SIGKILL)
            case Death.OF_ALL:
                # The one that makes the call is stopped; the command, which waits for it, must not see it die.
                for other in sorted(self._alive, key=self._order.__getitem__):
                    os.kill(other, signal.SIGKILL)
            case Request.OF_SERVICE:
                os.kill(self._command, signal.SIGTERM)
            case Request.OF_TERMINAL:
                os.killpg(self._command, signal.SIGINT)
            case int(error):
                registers[_ORIG_RAX], registers[_RAX] = 2**64 - 1, 2**64 - error
                _ptrace(_PTRACE_SETREGS, pid, 0, ctypes.addressof(registers))


def _ptrace(request: int, pid: int, address: int, value: int) -> bool:
    """False when the process has gone: it can be killed while it is stopped, and waitpid(2) tells that next."""
    if _libc.ptrace(request, pid, address, value) < 0:
        error = ctypes.get_errno()
        if error == errno.ESRCH:
            return False
        raise OSError(error, f"ptrace({request:#x}, {pid}): {os.strerror(error)}")
    return True

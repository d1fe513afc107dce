"""Code that runs inside a container's namespaces: sockets opened there, children that enter its mount namespace."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from scplan.errors import KernelError, ScplanError
from scplan.linux.syscalls import CLONE_NEWNET, setns

T = TypeVar("T")
CHILD_TIMEOUT_S = 10.0
_KILL_WAIT_S = 1.0
_CLOCK_SLACK_S = 0.01
_LENGTH_BYTES = 8
_PIPE_BYTES = 1 << 16


def namespace_id(link: str, *, dir_fd: int | None = None) -> int:
    """Inode of the namespace behind a link in /proc/PID/ns. Raises OSError. namespaces(7).

    Taken from the link's text, `mnt:[4026531841]`: stat(2), which follows the link, takes twice as long.
    """
    return int(os.readlink(link, dir_fd=dir_fd).rpartition("[")[2].removesuffix("]"))


def socket_in(netns_fd: int, own_netns_fd: int, open_socket: Callable[[], socket.socket]) -> socket.socket:
    """Socket of another network namespace; this thread is back in its own afterwards."""
    # A socket stays in the network namespace in which it was created.
    setns(netns_fd, CLONE_NEWNET, name="the container's network namespace")
    try:
        return open_socket()
    finally:
        setns(own_netns_fd, CLONE_NEWNET, name="scplan's own network namespace")


def socket_apart(netns_fd: int, open_socket: Callable[[], socket.socket]) -> socket.socket:
    """Socket as of `socket_in`, opened by a child: without authority over its own network, a process can't return."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def open_there() -> None:
        setns(netns_fd, CLONE_NEWNET, name="the container's network namespace")
        with open_socket() as opened:
            socket.send_fds(theirs, [b"0"], [opened.fileno()])

    with ours, theirs:
        Child(open_there, what="open a socket in the container's network namespace").result()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    return socket.socket(fileno=fds[0])


class Child(Generic[T]):
    """Work in a forked child, which may enter namespaces; `result` waits for its result, which is pickled."""

    def __init__(
        self,
        work: Callable[[], T],
        *,
        what: str,
        timeout_s: float = CHILD_TIMEOUT_S,
    ) -> None:
        """Start the child. `what` names the work in errors; the time limit counts from now."""
        import pickle  # noqa: F401  # the child can't import pickle inside a container

        self._what = what
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        # Else the child would have a copy of output that is not written yet.
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _run_child(work, self._reader, writer)
        os.close(writer)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def fd(self) -> int:
        """fd that becomes readable when `result` does not have to wait any more."""
        return self._reader

    @property
    def deadline_s(self) -> float:
        """Time at which the child's limit is reached, by time.monotonic()."""
        return self._deadline

    def result(self) -> T:
        """Result of the child. Must be called once, unless the child is abandoned."""
        try:
            return self.answer()
        finally:
            self._end(self._deadline)

    def answer(self) -> T:
        """Result of the child, which may still be about to end: call `abandon` afterwards.

        Raises the child's error as ScplanError or OSError, and KernelError for a child that dies or hangs (on a file
        system that the container serves, say).
        """
        import pickle

        answer = read_answer(self._reader, self._deadline)
        if answer is None:
            raise no_answer(self._what, self._timeout_s, self._deadline)
        succeeded, value = pickle.loads(answer)
        if not succeeded:
            raise value
        result: T = value
        return result

    def abandon(self) -> None:
        """End the child, whose result is not needed any more."""
        self._end(time.monotonic())

    def _end(self, deadline: float) -> None:
        os.close(self._reader)
        end_child(self._pid, deadline)


def results(children: Sequence[Child[T]]) -> list[T]:
    """Results of all children, in order. If some fail, the first error is raised after all have ended."""
    found: list[T] = []
    errors: list[ScplanError | OSError] = []
    for child in children:
        try:
            found.append(child.result())
        except (ScplanError, OSError) as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return found


def _run_child(work: Callable[[], object], reader: int, writer: int) -> None:
    """Run the child's whole life: never returns, and never runs the parent's cleanup."""
    import pickle

    try:
        os.close(reader)
        close_stdio()
        answer = pickle.dumps(answer_of(work))
        view = memoryview(len(answer).to_bytes(_LENGTH_BYTES, "little") + answer)
        while view:
            view = view[os.write(writer, view) :]
    except BaseException:
        os._exit(1)
    os._exit(0)


def no_answer(what: str, timeout_s: float, deadline: float) -> KernelError:
    """Error for work without an answer: its time is up, or its process died before."""
    if time.monotonic() >= deadline - _CLOCK_SLACK_S:
        return KernelError(what, errno.ETIMEDOUT, detail=f"the step inside the container took over {timeout_s:g} s")
    return KernelError(
        what,
        errno.ECHILD,
        detail="the process that took the step inside the container died",
        hint="somebody killed it, or the host is out of memory: `dmesg` says so then",
    )


def answer_of(work: Callable[[], object]) -> tuple[bool, object]:
    """(True, result of the work) or (False, its error)."""
    try:
        return True, work()
    except (ScplanError, OSError) as error:
        return False, error
    except Exception as error:
        summary = f"{type(error).__name__}: {error}; this is a bug in scplan"
        return False, ScplanError(summary, detail="\n".join(_places(error)))


def _places(error: BaseException) -> Iterator[str]:
    """Places of a traceback. Not by `traceback`: it reads source lines, which inside are files of the container."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        yield f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next


def close_stdio() -> None:
    """Replace the caller's terminal or pipes: a child that hangs must not keep their readers waiting."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def forbid_imports() -> None:
    """Make the import of any further module an ImportError.

    For processes in a container's root: Python would look for modules there, and execute them.
    """
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path.clear()


def read_answer(fd: int, deadline: float) -> bytes | None:
    """Answer of a child; None if the child ended before its answer was complete, or the time is up."""
    length = _read_exactly(fd, _LENGTH_BYTES, deadline)
    return None if length is None else _read_exactly(fd, int.from_bytes(length, "little"), deadline)


def _read_exactly(fd: int, count: int, deadline: float) -> bytes | None:
    chunks: list[bytes] = []
    while count:
        chunk = os.read(fd, min(count, _PIPE_BYTES)) if is_ready(fd, deadline - time.monotonic()) else b""
        if not chunk:
            return None
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def is_ready(fd: int, timeout_s: float) -> bool:
    """True if `fd` can be read within the time. poll(2): select(2) takes no fd above 1023."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(max(0.0, timeout_s) * 1000))


def end_child(pid: int, deadline: float) -> None:
    """Reap a child; kill it first if it runs at `deadline`. A child that is stuck in the kernel is left to init."""
    pidfd = os.pidfd_open(pid)
    try:
        # A pidfd is readable once its process has ended. pidfd_open(2)
        if not is_ready(pidfd, deadline - time.monotonic()):
            os.kill(pid, signal.SIGKILL)
            if not is_ready(pidfd, _KILL_WAIT_S):
                return
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)

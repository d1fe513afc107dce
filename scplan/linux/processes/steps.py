"""The stepper: one process that takes all steps into containers, one after the other, and returns from each.

A fork costs more than most steps (docs/explanation/kernel.md, "Time"). A step is a picklable function, sent together
with the fds that it acts on: no path is opened twice. The stepper holds its parent's locks and journal, so that both
stay locked while a step may be running; it holds nothing else of the parent.
Sources: unix(7) SCM_RIGHTS, setns(2), chroot(2), flock(2), proc_pid_fdinfo(5).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from scplan.errors import KernelError
from scplan.linux.closing import Closing
from scplan.linux.processes.namespaces import CHILD_TIMEOUT_S, answer_of, namespace_id, no_answer, read_answer
from scplan.linux.processes.resident import Resident, close_all_but
from scplan.linux.syscalls import CLONE_NEWNS, setns, statx

T = TypeVar("T")
Step = Callable[[Sequence[int]], T]
"""Work on the fds that are sent along. A function of a module, or a functools.partial of one: it is pickled."""

_LENGTH_BYTES = 8
_MAX_FDS = 64


class Stepper(Closing):
    """Takes steps in a process of its own, which the first step starts.

    The process holds the locks of its parent at that time. After locking another file, close the stepper: the next step
    starts a new process.
    """

    def __init__(self) -> None:
        self._resident: Resident | None = None

    @property
    def pid(self) -> int | None:
        """PID of the process; None before the first step, and after a step that had to be killed."""
        return self._resident.pid if self._resident is not None else None

    def close(self) -> None:
        """End the process."""
        if self._resident is not None:
            self._resident.close()
            self._resident = None

    def take(self, step: Step[T], fds: Sequence[int], *, what: str, timeout_s: float = CHILD_TIMEOUT_S) -> T:
        """Result of `step`, called with copies of `fds` that are closed afterwards; `what` names the step in errors.

        Raises the step's error as ScplanError or OSError, and KernelError for a process that dies or hangs (on a file
        system that the container serves, say); it is killed when its time is up. When this returns, all that the step
        changed of its process (namespaces, root, umask, fds) is restored.
        """
        import pickle

        deadline = time.monotonic() + timeout_s
        request = pickle.dumps(step)
        try:
            answer = self._ask(request, fds, deadline)
        except BaseException:
            # Interrupted: the step must not be running any more when its operation is undone.
            self._kill()
            raise
        if answer is None:
            error = no_answer(what, timeout_s, deadline)
            self._kill()
            raise error
        succeeded, value, is_back = pickle.loads(answer)
        if not is_back:
            self._kill()
        if not succeeded:
            raise value
        result: T = value
        return result

    def _ask(self, request: bytes, fds: Sequence[int], deadline: float) -> bytes | None:
        """Answer of the process; None if the process died, or the time was up."""
        if self._resident is None:
            self._resident = Resident(_serve, socket.SOCK_STREAM)
        asking = self._resident.socket
        asking.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            socket.send_fds(asking, [len(request).to_bytes(_LENGTH_BYTES, "little")], fds)
            asking.sendall(request)
            return read_answer(asking.fileno(), deadline)
        except (ConnectionError, TimeoutError):
            return None

    def _kill(self) -> None:
        if self._resident is not None:
            self._resident.kill()
            self._resident = None


def _serve(requests: socket.socket) -> None:
    """Run the process's whole life. It ends if it can't return from a step: the next step would run elsewhere.

    An answer is (True, result of the step) or (False, its error), and True if the process has returned from the step.
    """
    import pickle

    home = _Home()
    kept = {requests.fileno(), *home.fds, *_locked_fds()}
    close_all_but(kept)
    while True:
        header, fds, _, _ = socket.recv_fds(requests, _LENGTH_BYTES, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        request = requests.recv(int.from_bytes(header, "little"), socket.MSG_WAITALL) if header else b""
        if not request:
            return
        outcome = answer_of(partial(_received, request, fds))
        is_back, problem = answer_of(home.come_back)
        if not is_back and outcome[0]:
            outcome = False, problem
        # Before the answer: an open fd of a mount keeps the mount from being unmounted. umount(2), EBUSY
        close_all_but(kept)
        answer = pickle.dumps((*outcome, is_back))
        requests.sendall(len(answer).to_bytes(_LENGTH_BYTES, "little") + answer)
        if not is_back:
            return


def _received(request: bytes, fds: Sequence[int]) -> object:
    """Take the received step. Unpickling imports the modules that it needs, outside of any container."""
    import pickle

    return pickle.loads(request)(fds)


class _Home:
    """Parts of the process that a step may change, as they are outside of all containers. Enters the directory "/"."""

    def __init__(self) -> None:
        os.chdir("/")
        self._namespace_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # Names this process in every mount namespace: in a container, /proc may be another one, or missing.
        self._process_fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._namespaces = self._own_namespaces()
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._path, self._path_hooks, self._meta_path = [*sys.path], [*sys.path_hooks], [*sys.meta_path]

    @property
    def fds(self) -> tuple[int, int, int]:
        """fds that must stay open for the return."""
        return self._namespace_fd, self._root_fd, self._process_fd

    def come_back(self) -> None:
        """Return from anywhere in this user namespace. Imports come last: earlier, modules would be the container's."""
        try:
            setns(self._namespace_fd, CLONE_NEWNS, name="scplan's own mount namespace")
            os.fchdir(self._root_fd)
            os.chroot(".")
        except (KernelError, PermissionError):
            # Without privileges, no step can leave this namespace or root.
            if not self._is_here():
                raise
        os.umask(self._umask)
        # Finders have cached directories, maybe of the container: these are looked up anew.
        sys.path_importer_cache.clear()
        sys.path[:], sys.path_hooks[:], sys.meta_path[:] = self._path, self._path_hooks, self._meta_path

    def _own_namespaces(self) -> list[int]:
        return [namespace_id(f"ns/{kind}", dir_fd=self._process_fd) for kind in ("user", "mnt")]

    def _is_here(self) -> bool:
        """True if the process is in its own namespaces and root."""
        if self._own_namespaces() != self._namespaces:
            return False
        os.fchdir(self._root_fd)
        now_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            now, own = statx(now_fd), statx(self._root_fd)
        finally:
            os.close(now_fd)
        return (now.st_dev, now.st_ino, now.mount_id) == (own.st_dev, own.st_ino, own.mount_id)


def _locked_fds() -> list[int]:
    """fds with a flock(2) held, by this process's copies as well: the lock belongs to the open file description."""
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_locked(fd)]


def _is_locked(fd: int) -> bool:
    try:
        found = os.fstat(fd)
        # Skip files of namespaces: they are regular, too, and may be thousands, but nobody can write to them.
        if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IWUSR:
            return False
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            # fdinfo has a line "lock:" for each lock of the open file description. proc_pid_fdinfo(5)
            return any(line.startswith(b"lock:") for line in file)
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOENT):  # fd of the listing itself, closed by now
            return False
        raise KernelError.from_os(f"open(/proc/self/fdinfo/{fd})", error) from None

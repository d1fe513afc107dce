"""The stepper: one process that takes all steps into containers, one after the other, and comes back from each.

A fork costs more than what most steps do (docs/explanation/kernel.md, "Time"). A step is a picklable function with
the fds that it is to act on, which go along with it: nothing is opened again by path. The stepper holds the locks and
the journal of its parent, so that neither is free while a step may still be under way, and nothing else.
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
"""What is done with the fds that come along. A function of a module, or a functools.partial of one: it is pickled."""

_LENGTH_BYTES = 8
_MAX_FDS = 64


class Stepper(Closing):
    """Takes steps in a process of its own, which is started by the first one.

    It holds what was locked then. Who locks something else closes it before the next step: a new one is started.
    """

    def __init__(self) -> None:
        self._resident: Resident | None = None

    @property
    def pid(self) -> int | None:
        """The process; None before the first step, and after one that had to be killed."""
        return self._resident.pid if self._resident is not None else None

    def close(self) -> None:
        """Ends the process."""
        if self._resident is not None:
            self._resident.close()
            self._resident = None

    def take(self, step: Step[T], fds: Sequence[int], *, what: str, timeout_s: float = CHILD_TIMEOUT_S) -> T:
        """What `step` returns, called with copies of `fds` that are closed afterwards; `what` names it in errors.

        An error of the step is raised here, as ScplanError or OSError. A process that hangs (on a file system that the
        container serves, say) is killed when the time is up, and one that dies is reported: both are a KernelError.
        Whatever the step did to its process (namespaces, root, umask, fds) is taken back when this returns.
        """
        import pickle

        deadline = time.monotonic() + timeout_s
        request = pickle.dumps(step)
        try:
            answer = self._ask(request, fds, deadline)
        except BaseException:
            # Interrupted: what may still be under way must not be when this is undone.
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
        """The answer; None when the process died, or the time was up."""
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
    """The life of the process. Without a way back it ends: its next step would be taken elsewhere.

    An answer is (True, what the step returned) or (False, its error), and whether the process is back from it.
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
        # Before the answer: what is still open of a mount keeps it from being unmounted.
        close_all_but(kept)
        answer = pickle.dumps((*outcome, is_back))
        requests.sendall(len(answer).to_bytes(_LENGTH_BYTES, "little") + answer)
        if not is_back:
            return


def _received(request: bytes, fds: Sequence[int]) -> object:
    """Takes the step as it came. To unpickle it imports what it needs, outside of any container."""
    import pickle

    return pickle.loads(request)(fds)


class _Home:
    """What a step may change of the process, as it is outside of all containers. The working directory is the root."""

    def __init__(self) -> None:
        os.chdir("/")
        self._namespace_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # Names this process wherever it is: in a container /proc may be another one, or none.
        self._process_fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._namespaces = self._own_namespaces()
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._path, self._path_hooks, self._meta_path = [*sys.path], [*sys.path_hooks], [*sys.meta_path]

    @property
    def fds(self) -> tuple[int, int, int]:
        """What has to be kept open for the way back."""
        return self._namespace_fd, self._root_fd, self._process_fd

    def come_back(self) -> None:
        """From wherever it is in this user namespace. Imports come last: before, they would be the container's."""
        try:
            setns(self._namespace_fd, CLONE_NEWNS, name="scplan's own mount namespace")
            os.fchdir(self._root_fd)
            os.chroot(".")
        except (KernelError, PermissionError):
            # Without privileges no step gets away from here in the first place.
            if not self._is_here():
                raise
        os.umask(self._umask)
        # What finders have cached of directories is looked up anew, not trusted.
        sys.path_importer_cache.clear()
        sys.path[:], sys.path_hooks[:], sys.meta_path[:] = self._path, self._path_hooks, self._meta_path

    def _own_namespaces(self) -> list[int]:
        return [namespace_id(f"ns/{kind}", dir_fd=self._process_fd) for kind in ("user", "mnt")]

    def _is_here(self) -> bool:
        """True if the process has its own namespaces and root still, or again."""
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
    """Those on which a flock(2) is held: this process's copies hold it too."""
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_locked(fd)]


def _is_locked(fd: int) -> bool:
    try:
        found = os.fstat(fd)
        # Files of namespaces are regular too, and there may be thousands; nobody can write to them.
        if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IWUSR:
            return False
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            return any(line.startswith(b"lock:") for line in file)
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOENT):  # the listing's own, which is closed by now
            return False
        raise KernelError.from_os(f"open(/proc/self/fdinfo/{fd})", error) from None

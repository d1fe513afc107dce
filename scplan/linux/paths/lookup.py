"""Look-ups of container paths that never wait for a file system of the container's own. Source: openat2(2).

A path in the kernel's cache is opened at once (RESOLVE_CACHED, Linux 5.12): no file system is asked, so the call can't
hang. All other paths are opened by a separate process, which is killed when it takes too long.
"""

from __future__ import annotations

import errno
import os
import socket

from scplan.errors import KernelError
from scplan.linux.closing import Closing
from scplan.linux.paths.rooted_path import IN_ROOT, open_in_root, opened
from scplan.linux.processes.namespaces import is_ready
from scplan.linux.processes.resident import Resident, close_all_but
from scplan.linux.syscalls import FileStatus, Resolve, openat2, statx

LOOKUP_TIMEOUT_S = 5.0
_MAX_PATH_BYTES = 1 << 14
_CACHED_IN_ROOT = int(IN_ROOT | Resolve.CACHED)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# EAGAIN: not cached. EINVAL: the flag is unknown before Linux 5.12.
_NOT_CACHED = (errno.EAGAIN, errno.EINVAL)
# The kernel also gives EAGAIN whenever anything is mounted or renamed at that moment, anywhere.
_CACHED_TRIES = 3


class Lookup(Closing):
    """Opens paths below the roots of containers. A process for uncached paths is started when first needed."""

    def __init__(self) -> None:
        self._opener: _Opener | None = None

    def close(self) -> None:
        """End the process for uncached paths."""
        if self._opener is not None:
            self._opener.close()
            self._opener = None

    def open(self, root_fd: int, path: str, *, container: str) -> int:
        """O_PATH fd of a path, as from open_in_root; `statx` of the fd never waits either. `container` is for errors.

        Raises OSError, and KernelError ETIMEDOUT if a file system on the way does not answer.
        """
        for _ in range(_CACHED_TRIES):
            try:
                return openat2(root_fd, path, os.O_PATH | os.O_NOFOLLOW, resolve=_CACHED_IN_ROOT)
            except OSError as error:
                if error.errno not in _NOT_CACHED:
                    raise
        if self._opener is None:
            self._opener = _Opener()
        try:
            return self._opener.open(root_fd, path, container)
        except KernelError:
            self.close()
            raise

    def status(self, root_fd: int, path: str, *, container: str) -> FileStatus | None:
        """Status of `path` (of a symlink itself, not its target); None if absent."""
        try:
            fd = self.open(root_fd, path, container=container)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise KernelError.from_os(f"openat2({path}) in container {container}", error) from None
        try:
            return statx(fd)
        finally:
            os.close(fd)


class _Opener(Closing):
    """Process that opens paths: a request is a path and the fd of its root, an answer an errno, or 0 and an fd."""

    def __init__(self) -> None:
        # SOCK_SEQPACKET keeps the boundaries of messages. unix(7)
        self._resident = Resident(_serve, socket.SOCK_SEQPACKET)
        self._socket = self._resident.socket

    def close(self) -> None:
        self._resident.kill()

    def open(self, root_fd: int, path: str, container: str) -> int:
        socket.send_fds(self._socket, [os.fsencode(path)], [root_fd])
        answer, fds = b"", list[int]()
        if is_ready(self._socket.fileno(), LOOKUP_TIMEOUT_S):
            answer, fds, _, _ = socket.recv_fds(self._socket, 4, 1, socket.MSG_CMSG_CLOEXEC)
        if not answer:
            raise KernelError(
                f"openat2({path}) in container {container}",
                errno.ETIMEDOUT,
                detail=f"a file system on the way did not answer within {LOOKUP_TIMEOUT_S:g} s",
                hint="the container, or a server that it uses, makes it wait: look for fuse or nfs in its mounts",
            )
        code = int.from_bytes(answer, "little")
        if code:
            raise OSError(code, os.strerror(code), path)
        return fds[0]


def _serve(requests: socket.socket) -> None:
    """Run the process's whole life: answer requests until the socket is closed."""
    # Locks are closed, too: this process may hang, and must not hold them meanwhile.
    close_all_but([requests.fileno()])
    while True:
        path, fds, _, _ = socket.recv_fds(requests, _MAX_PATH_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        if not path:
            return
        _answer(requests, fds[0], os.fsdecode(path))


def _answer(requests: socket.socket, root_fd: int, path: str) -> None:
    with opened(root_fd):
        try:
            fd = open_in_root(root_fd, path)
        except (OSError, KernelError) as error:
            requests.send((error.errno or errno.EIO).to_bytes(4, "little"))
            return
    with opened(fd):
        socket.send_fds(requests, [bytes(4)], [fd])

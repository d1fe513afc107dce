"""Events in a container's life: its end, its mounts, its network. pidfd_open(2), proc_pid_mountinfo(5)."""

from __future__ import annotations

import errno
import os
import select
import socket

from scplan.errors import ContainerGone, KernelError
from scplan.linux.closing import Closing
from scplan.linux.network.netlink.listening import OF_A_CONTAINER, drain, open_listener
from scplan.linux.processes.namespaces import socket_in
from scplan.linux.processes.process import start_of


class Life(Closing):
    """fds that watch one life of a container, from its start to its end.

    `ended_fd` becomes readable when the container's first process has ended. `network` and `mounts_fd` (poll it for
    EPOLLPRI) are None if they are not watched. Open fds keep the container's namespaces: they have to be closed as soon
    as the container has ended.
    """

    def __init__(self, pid: int, started: int, own_netns_fd: int, *, network: bool, mounts: bool) -> None:
        """Open the fds. Raises ContainerGone if the process has ended, KernelError if no fds are left."""
        self.network: socket.socket | None = None
        self.mounts_fd: int | None = None
        try:
            self.ended_fd = os.pidfd_open(pid)
        except OSError as error:
            raise _gone(pid) if error.errno == errno.ESRCH else KernelError.from_os("pidfd_open()", error) from None
        try:
            self._open(pid, started, own_netns_fd, network=network, mounts=mounts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.ended_fd)
        if self.network is not None:
            self.network.close()
        if self.mounts_fd is not None:
            os.close(self.mounts_fd)

    @property
    def fds(self) -> list[int]:
        """All open fds."""
        maybe = (self.ended_fd, self.mounts_fd, self.network.fileno() if self.network else None)
        return [fd for fd in maybe if fd is not None]

    @property
    def has_ended(self) -> bool:
        waiting = select.poll()
        waiting.register(self.ended_fd, select.POLLIN)
        return bool(waiting.poll(0))

    def forget(self) -> None:
        """Discard the network's events so far. Events of mounts are discarded by polling."""
        if self.network is not None:
            drain(self.network)

    def _open(self, pid: int, started: int, own_netns_fd: int, *, network: bool, mounts: bool) -> None:
        try:
            if start_of(pid) != started:
                raise _gone(pid)
            if mounts:
                # poll(2) reports a change of the mounts as POLLPRI and POLLERR. proc_pid_mounts(5)
                self.mounts_fd = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            if network:
                netns_fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self.network = socket_in(netns_fd, own_netns_fd, lambda: open_listener(OF_A_CONTAINER))
                finally:
                    os.close(netns_fd)
        except (FileNotFoundError, ProcessLookupError):
            raise _gone(pid) from None
        except OSError as error:
            raise KernelError.from_os(f"open(/proc/{pid})", error) from None
        # The pidfd's process still runs: the PID was its own while the files of /proc/PID were opened.
        if self.has_ended:
            raise _gone(pid)


def _gone(pid: int) -> ContainerGone:
    return ContainerGone(f"process {pid} is gone")

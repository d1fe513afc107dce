"""One life of a container, listened to: its end, its mounts, its network. pidfd_open(2), proc_pid_mountinfo(5)."""

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
    """The fds that a life of a container is listened to by; held as long as it is.

    `ended_fd` becomes readable when its first process has ended. `network` and `mounts_fd` (which is to be polled for
    EPOLLPRI) are None where nothing is to be heard of them. While they are open they keep the namespaces of the
    container, so that they have to be closed as soon as it has ended.
    """

    def __init__(self, pid: int, started: int, own_netns_fd: int, *, network: bool, mounts: bool) -> None:
        """Raises ContainerGone when that process has ended, KernelError when there are no fds left."""
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
        """All of them."""
        maybe = (self.ended_fd, self.mounts_fd, self.network.fileno() if self.network else None)
        return [fd for fd in maybe if fd is not None]

    @property
    def has_ended(self) -> bool:
        waiting = select.poll()
        waiting.register(self.ended_fd, select.POLLIN)
        return bool(waiting.poll(0))

    def forget(self) -> None:
        """Lets go of what was heard of the network so far. Mounts are forgotten by having been polled."""
        if self.network is not None:
            drain(self.network)

    def _open(self, pid: int, started: int, own_netns_fd: int, *, network: bool, mounts: bool) -> None:
        try:
            if start_of(pid) != started:
                raise _gone(pid)
            if mounts:
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
        # Whoever has the PID now had it when these were opened, unless it has ended meanwhile.
        if self.has_ended:
            raise _gone(pid)


def _gone(pid: int) -> ContainerGone:
    return ContainerGone(f"process {pid} is gone")

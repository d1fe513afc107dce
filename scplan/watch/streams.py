"""Event streams of daemons that report starts of containers; a broken connection is opened again."""

from __future__ import annotations

import socket

from scplan.errors import KernelError
from scplan.linux.closing import Closing
from scplan.linux.local_socket import open_stream
from scplan.runtimes.runtime import Stream

_CHUNK_BYTES = 1 << 16
_LONGEST_LINE = 1 << 16


class DaemonEvents(Closing):
    """Event stream of one daemon. `fd` is None while there is no connection."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._connection: socket.socket | None = None
        self._rest = b""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._rest = b""

    @property
    def fd(self) -> int | None:
        return None if self._connection is None else self._connection.fileno()

    def connect(self) -> bool:
        """Connects; True if a daemon listens. Raises KernelError if it is run by neither root nor this user."""
        self.close()
        try:
            self._connection = open_stream(self.stream.socket, self.stream.target)
        except KernelError:
            raise
        except OSError:
            return False  # absent or too busy: retried later
        return True

    def lines(self) -> list[bytes] | None:
        """Lines since the last call; None if the connection has ended, or does not send lines."""
        assert self._connection is not None
        try:
            data = self._connection.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > _LONGEST_LINE:
            return None
        return lines

"""Waits for signs that stopped containers start: files of their runtimes, and event streams of daemons."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from scplan.errors import KernelError
from scplan.linux.closing import Closing
from scplan.runtimes.runtime import Stream
from scplan.watch.attend import Key
from scplan.watch.paths import Paths
from scplan.watch.poller import Poller
from scplan.watch.rest import Rest
from scplan.watch.streams import DaemonEvents
from scplan.watch.watched import Watched

_CONNECT_AGAIN_S = 2.0


class StartEvents(Closing):
    """Waits for signs of stopped containers. `hint` is called with the keys of containers that may have started.

    `rest` schedules later work by name, and does it; `complain` reports a source that cannot be listened to.
    """

    def __init__(
        self,
        poller: Poller,
        hint: Callable[[Iterable[Key]], None],
        rest: Rest,
        complain: Callable[[KernelError | OSError], None],
    ) -> None:
        self._poller, self._hint, self._rest, self._complain = poller, hint, rest, complain
        self._paths: Paths[Key] = Paths()
        poller.add(self._paths.fd, self._heard_paths)
        self._waiting: dict[Key, Watched] = {}
        self._streams: dict[Stream, DaemonEvents] = {}

    def close(self) -> None:
        self._paths.close()
        for told in self._streams.values():
            told.close()

    def await_start(self, one: Watched) -> bool:
        """Waits for a container's start; True if that is new, so that the container must be checked once more."""
        if one.key in self._waiting:
            return False
        self._waiting[one.key] = one
        for file in one.signs.files:
            self._add(file, one.key)
        for stream in one.signs.streams:
            if stream not in self._streams:
                self._streams[stream] = DaemonEvents(stream)
                self._add(stream.socket, ("", stream.socket))
                self._connect(stream)
        return True

    def await_nothing(self, one: Watched) -> None:
        """Stops waiting for a start: the container runs, or is no longer watched."""
        if self._waiting.pop(one.key, None) is None:
            return
        for file in one.signs.files:
            self._paths.remove(file, one.key)

    def connect_again(self) -> None:
        """Connects to all daemons again."""
        for stream in self._streams:
            self._connect(stream)

    def _add(self, path: str, key: Key) -> None:
        try:
            self._paths.add(path, key)
        except OSError as error:
            if key in self._waiting:
                self._waiting[key].is_unheard = True
            self._complain(error)

    def _heard_paths(self) -> None:
        try:
            keys = self._paths.heard()
        except OSError as error:
            self._complain(error)
            keys = set(self._waiting)
        self._hint(key for key in keys if key[0])
        sockets = {path for runtime, path in keys if not runtime}
        for stream, told in self._streams.items():
            if stream.socket in sockets and told.fd is None:
                self._connect(stream)
        self._rest.arm(self._paths.fd)

    # daemons

    def _connect(self, stream: Stream) -> None:
        told = self._streams[stream]
        if told.fd is not None:
            self._poller.remove(told.fd)
        try:
            connected = told.connect()
        except KernelError as error:
            self._complain(error)
            connected = False
        if not connected or told.fd is None:
            self._rest.after(_CONNECT_AGAIN_S, f"connect {stream.socket}", lambda: self._connect_if_needed(stream))
            return
        self._poller.add(told.fd, lambda: self._heard_stream(stream))
        # Events before the connection were missed: check all containers of this stream.
        self._hint(key for key, one in self._waiting.items() if stream in one.signs.streams)

    def _connect_if_needed(self, stream: Stream) -> None:
        if self._streams[stream].fd is None:
            self._connect(stream)

    def _heard_stream(self, stream: Stream) -> None:
        told = self._streams[stream]
        assert told.fd is not None
        lines = told.lines()
        if lines is None:
            self._poller.remove(told.fd)
            told.close()
            self._rest.after(_CONNECT_AGAIN_S, f"connect {stream.socket}", lambda: self._connect_if_needed(stream))
            return
        text = b"\n".join(lines)
        self._hint(key for key, one in self._waiting.items() if stream in one.signs.streams and one.id.encode() in text)
        self._rest.arm(told.fd)

"""Watches records, which may be created, written or removed. inotify(7)"""

from __future__ import annotations

import os

from scplan.linux.closing import Closing
from scplan.linux.inotify import Inotify, Mask
from scplan.store.durable import make_directory
from scplan.store.state import State
from scplan.watch.attend import Key

# A record appears, is replaced and disappears by rename(2).
_CHANGES = Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CREATE


class Recordings(Closing):
    """Watches the directories of records; `fd` is readable after a change in one of them."""

    def __init__(self, state: State) -> None:
        """Creates the directory of records if it is absent, so that it can be watched."""
        self._top = os.path.join(state.directory, "containers")
        make_directory(self._top)
        self._inotify = Inotify()
        self.fd = self._inotify.fd
        self._runtimes: dict[int, str] = {}
        self.watch_all()

    def close(self) -> None:
        self._inotify.close()

    def watch_all(self) -> None:
        """Watches all existing directories of records. Raises OSError if no more directories can be watched."""
        self._runtimes[self._inotify.add(self._top, _CHANGES)] = ""
        for runtime in os.listdir(self._top):
            path = os.path.join(self._top, runtime)
            if os.path.isdir(path):
                self._runtimes[self._inotify.add(path, _CHANGES)] = runtime

    def heard(self) -> set[Key]:
        """Keys of records that were written or removed; new directories are watched from now on."""
        found: set[Key] = set()
        for watch, _, name in self._inotify.read():
            runtime = self._runtimes.get(watch, "")
            if runtime and name.endswith(".json"):
                found.add((runtime, name.removesuffix(".json")))
        self.watch_all()
        return found

"""Records that are written, appear or go while they are watched."""

from __future__ import annotations

import os

from scplan.linux.closing import Closing
from scplan.linux.inotify import Inotify, Mask
from scplan.store.durable import make_directory
from scplan.store.state import State
from scplan.watch.attend import Key

# Records are put in place by rename, and go by one.
_CHANGES = Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CREATE


class Recordings(Closing):
    """The directories of the records; `fd` is readable when something in them changed."""

    def __init__(self, state: State) -> None:
        """Makes the directory when it is not there, so that it can be watched."""
        self._top = os.path.join(state.directory, "containers")
        make_directory(self._top)
        self._inotify = Inotify()
        self.fd = self._inotify.fd
        self._runtimes: dict[int, str] = {}
        self.watch_all()

    def close(self) -> None:
        self._inotify.close()

    def watch_all(self) -> None:
        """Watches the directories that are there now. Raises OSError when no more can be watched."""
        self._runtimes[self._inotify.add(self._top, _CHANGES)] = ""
        for runtime in os.listdir(self._top):
            path = os.path.join(self._top, runtime)
            if os.path.isdir(path):
                self._runtimes[self._inotify.add(path, _CHANGES)] = runtime

    def heard(self) -> set[Key]:
        """The containers whose records were written or have gone; new directories are watched from now on."""
        found: set[Key] = set()
        for watch, _, name in self._inotify.read():
            runtime = self._runtimes.get(watch, "")
            if runtime and name.endswith(".json"):
                found.add((runtime, name.removesuffix(".json")))
        self.watch_all()
        return found

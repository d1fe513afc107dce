"""Waits for files that may appear, change or vanish, even if their directories do not exist yet. inotify(7)"""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Generic, TypeVar

from scplan.linux.closing import Closing
from scplan.linux.inotify import ENTRIES, Inotify, Mask

K = TypeVar("K", bound=Hashable)
# Changes of a directory's entries, and the removal or rename of the directory itself.
_WATCHED = ENTRIES | Mask.DELETE_SELF | Mask.MOVE_SELF


class Paths(Closing, Generic[K]):
    """Paths, each with the keys that wait for it. For a missing directory, its nearest existing parent is watched."""

    def __init__(self) -> None:
        self._inotify = Inotify()
        self.fd = self._inotify.fd
        self._waiting: dict[str, set[K]] = {}
        self._places: dict[str, tuple[int, str]] = {}
        self._by_place: dict[int, dict[str, set[str]]] = {}

    def close(self) -> None:
        self._inotify.close()

    def add(self, path: str, key: K) -> None:
        """Waits for a path. Raises OSError if no more directories can be watched; the path counts nevertheless."""
        path = os.path.normpath(path)
        self._waiting.setdefault(path, set()).add(key)
        if path not in self._places:
            self._place(path)

    def remove(self, path: str, key: K) -> None:
        path = os.path.normpath(path)
        keys = self._waiting.get(path, set())
        keys.discard(key)
        if not keys:
            self._waiting.pop(path, None)
            self._displace(path)

    def heard(self) -> set[K]:
        """Keys whose paths have events. Raises OSError if a path cannot be watched any more."""
        touched: set[str] = set()
        for watch, mask, name in self._inotify.read():
            if mask & Mask.Q_OVERFLOW:
                # The kernel has dropped events: any path may have changed.
                touched.update(self._waiting)
            elif watch in self._by_place:
                # IN_IGNORED: the kernel has removed the watch, because the directory was deleted or unmounted.
                about_itself = bool(mask & (Mask.IGNORED | Mask.DELETE_SELF | Mask.MOVE_SELF))
                by_name = self._by_place[watch]
                touched.update(set().union(*by_name.values()) if about_itself else by_name.get(name, ()))
        found: set[K] = set()
        for path in touched:
            found |= self._waiting.get(path, set())
        for path in touched:
            self._displace(path)
            if path in self._waiting:
                self._place(path)
        return found

    def _place(self, path: str) -> None:
        """Watches the deepest existing directory on the way to `path`."""
        while True:
            directory, name = _deepest(path)
            try:
                watch = self._inotify.add(directory, _WATCHED)
            except (FileNotFoundError, NotADirectoryError):
                continue  # the directory was removed meanwhile: retry
            self._by_place.setdefault(watch, {}).setdefault(name, set()).add(path)
            self._places[path] = (watch, name)
            # A directory that was created before the watch began causes no event: continue with that directory.
            if _deepest(path) == (directory, name):
                return
            self._displace(path)

    def _displace(self, path: str) -> None:
        watch, name = self._places.pop(path, (-1, ""))
        by_name = self._by_place.get(watch)
        if by_name is None:
            return
        by_name[name].discard(path)
        if not by_name[name]:
            del by_name[name]
        if not by_name:
            del self._by_place[watch]
            self._inotify.remove(watch)


def _deepest(path: str) -> tuple[str, str]:
    """(deepest existing directory on the way to `path`, the part of the path after it)"""
    directory, name = os.path.split(path)
    while not os.path.isdir(directory):
        directory, name = os.path.split(directory)
    return directory, name

"""Containers of real engines in a room, and scplan in it: what the tests of engines share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Scplan
from tests.containers import needs
from tests.containers.engines import ENGINES, Engine
from tests.containers.room import Room

STATE_DIR = Path("/var/lib/scplan")
"""The usual one, which a room has of its own: containerd hands no other on to the hook."""


class RoomScplan(Scplan):
    """Runs scplan inside the room, as on a host of its own."""

    def __init__(self, directory: Path, room: Room) -> None:
        super().__init__(directory, STATE_DIR)
        self.room = room

    def command(self, *arguments: str) -> list[str]:
        return self.room.command(sys.executable, "-m", "scplan", *arguments, directory=self.directory)


_started: dict[tuple[int, str], Engine] = {}


def engine_of(name: str, room: Room) -> Engine:
    """The engine, started at its first use."""
    if absent := needs.missing(ENGINES[name].needs):
        pytest.skip(f"this machine has no {', '.join(absent)}")
    key = (room.pid, name)
    if key not in _started:
        _started[key] = ENGINES[name](room)
    return _started[key]


@contextmanager
def container(engine: Engine) -> Iterator[str]:
    """The name of a running container."""
    with container_named(engine, engine.room.session.name()) as name:
        yield name


@contextmanager
def container_named(engine: Engine, name: str) -> Iterator[str]:
    engine.run(name)
    try:
        yield name
    finally:
        engine.remove(name)


def limit_of(room: Room, pid: int) -> str:
    """The limit on processes of a process's cgroup."""
    group = "/sys/fs/cgroup/pids$(sed -n 's/^[0-9]*:pids://p' /proc/$1/cgroup)/pids.max"
    return room.sh(f'cat "{group}"', str(pid)).strip()

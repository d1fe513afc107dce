"""End-to-end tests run on real containers, so all of them need root."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Scplan
from tests.containers.room import Room
from tests.containers.session import Session
from tests.e2e.rooms import RoomScplan

_HERE = Path(__file__).parent
_TEARDOWN_S = 10.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.needs("root", "busybox"))


@pytest.fixture(scope="module")
def room(session: Session) -> Iterator[Room]:
    """A room with a bridge br0, whose engines find no hooks of the host's, and leave none on the host."""
    with Room(session) as made:
        made.run("ip", "link", "add", "br0", "address", "02:5c:97:00:00:01", "type", "bridge")
        made.sh("cp -a /usr/share/containers /run/share; mount --bind /run/share /usr/share/containers")
        yield made


@pytest.fixture
def scplan(request: pytest.FixtureRequest, scplan: Scplan, tmp_path: Path) -> Iterator[Scplan]:
    """In the room of a test that has one, on the records of that room, which end with the test."""
    if "room" not in request.fixturenames:
        yield scplan
        return
    made = RoomScplan(tmp_path, request.getfixturevalue("room"))
    yield made
    made.room.sh('rm -rf "$1"', str(made.state_dir))


@pytest.fixture(autouse=True)
def links_of_dead_containers_are_gone() -> Iterator[None]:
    """Waits, after the test, for the links of its containers: the kernel removes a network namespace a while later."""
    before = _links()
    yield
    wait_until_gone(before)


def wait_until_gone(before: set[str]) -> None:
    """Waits, for a while, until the host has no links but these."""
    deadline = time.monotonic() + _TEARDOWN_S
    while _links() - before and time.monotonic() < deadline:
        time.sleep(0.01)


def _links() -> set[str]:
    # By name alone: a link that was undone and made again has another index.
    return {name for _, name in socket.if_nameindex()}

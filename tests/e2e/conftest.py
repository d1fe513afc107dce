"""End-to-end tests run on real containers, so all of them need root."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_TEARDOWN_S = 10.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.needs("root", "busybox"))


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

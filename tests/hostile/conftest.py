"""Containers whose root is hostile. All of it needs root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import host_parts
from tests.containers.session import Session
from tests.hostile.canary import Canary, canary

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.needs("root", "busybox", "userns"))


@pytest.fixture
def host_canary(session: Session) -> Iterator[Canary]:
    """A directory of the host that nothing may touch during the test."""
    with host_parts.scratch_directory(session) as directory, canary(directory) as watched:
        yield watched

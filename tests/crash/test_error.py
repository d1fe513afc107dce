"""Every system call that could change something fails: all is undone, or the error was harmless."""

from __future__ import annotations

import pytest

from tests.containers.session import Session
from tests.crash.points import Trial, sample

pytestmark = [
    pytest.mark.needs("root", "busybox", "cgroup1", "userns", "veth", "bridge", "loop", "x86_64"),
    pytest.mark.timeout(3600),
]


@pytest.mark.parametrize(("name", "count"), [("apply", 24), ("destroy", 8), ("recover", 4), ("recover --forward", 4)])
def test_an_error_of_any_call_is_undone_or_harmless(session: Session, name: str, count: int) -> None:
    trial = Trial(name, session)
    try:
        failed = trial.try_all(sample(trial.errors(), count))
    finally:
        trial.close()
    assert not failed, "\n\n".join(failed)

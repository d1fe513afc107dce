"""scplan dies at every system call that could change something; after `recover` nothing is half done."""

from __future__ import annotations

import pytest

from tests.containers.session import Session
from tests.crash.points import SAMPLE, Trial, sample

pytestmark = [
    pytest.mark.needs("root", "busybox", "cgroup1", "userns", "veth", "bridge", "loop", "x86_64"),
    pytest.mark.timeout(3600),
]
JOBS = [
    "apply",
    "apply, forward",
    "apply, back",
    "apply the other way",
    "apply that fails",
    "apply that fails, forward",
    "destroy",
    "destroy, forward",
    "recover",
    "recover when all was made",
    "recover --back when all was made",
    "recover --back, then --forward",
    "recover --forward",
    "recover --forward, then --back",
]


@pytest.mark.parametrize("name", JOBS)
def test_a_death_at_any_call_leaves_nothing_half_done(session: Session, name: str) -> None:
    trial = Trial(name, session)
    try:
        failed = trial.try_all(sample(trial.deaths(), SAMPLE))
    finally:
        trial.close()
    assert not failed, "\n\n".join(failed)

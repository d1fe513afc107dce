"""scplan dies at every system call that could change something; after `recover` nothing is half done."""

from __future__ import annotations

import pytest

from tests.containers.session import Session
from tests.crash.points import PARTS, Trial, sample

pytestmark = [
    pytest.mark.needs("root", "busybox", "cgroup1", "userns", "veth", "bridge", "loop", "x86_64"),
    pytest.mark.timeout(3600),
]
SAMPLES = {
    "apply": 40,
    "apply the other way": 15,
    "apply that fails": 15,
    "destroy": 18,
    "undo": 15,
    "recover": 14,
    "recover when all was made": 8,
    "recover --back when all was made": 12,
    "recover --forward": 15,
}
"""How many points of each job `make test` tries; `make test-crash` tries all."""


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SAMPLES)
def test_a_death_at_any_call_leaves_nothing_half_done(session: Session, name: str, part: int) -> None:
    trial = Trial(name, session)
    try:
        failed = trial.try_all(sample(trial.deaths(), SAMPLES[name], part))
    finally:
        trial.close()
    assert not failed, "\n\n".join(failed)

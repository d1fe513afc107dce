"""scplan is asked to stop at every system call that could change something: all is done or undone then."""

from __future__ import annotations

import pytest

from tests.containers.session import Session
from tests.crash.points import PARTS, Trial, sample

pytestmark = [
    pytest.mark.needs("root", "busybox", "cgroup1", "userns", "veth", "bridge", "loop", "x86_64"),
    pytest.mark.timeout(3600),
]
SAMPLES = {"apply": 16, "apply that fails": 8, "destroy": 8, "undo": 8, "recover": 8, "recover --forward": 8}


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SAMPLES)
def test_a_request_to_stop_at_any_call_leaves_nothing_half_done(session: Session, name: str, part: int) -> None:
    trial = Trial(name, session)
    try:
        failed = trial.try_all(sample(trial.requests(), SAMPLES[name], part))
    finally:
        trial.close()
    assert not failed, "\n\n".join(failed)

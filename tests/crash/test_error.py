"""Every system call that could change something fails: all is undone, or the error was harmless."""

from __future__ import annotations

import errno

import pytest

from tests.containers.fingerprint import difference
from tests.containers.session import Session
from tests.crash.points import PARTS, Trial, sample
from tests.crash.scene import open_scene
from tests.crash.tracer import Call

pytestmark = [
    pytest.mark.needs("root", "busybox", "cgroup1", "userns", "veth", "bridge", "loop", "x86_64"),
    pytest.mark.timeout(3600),
]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(("name", "count"), [("apply", 30), ("destroy", 12), ("recover", 8), ("recover --forward", 8)])
def test_an_error_of_any_call_is_undone_or_harmless(session: Session, name: str, count: int, part: int) -> None:
    trial = Trial(name, session)
    try:
        failed = trial.try_all(sample(trial.errors(), count, part))
    finally:
        trial.close()
    assert not failed, "\n\n".join(failed)


def test_directory_above_one_that_could_not_be_made_is_taken_away(session: Session) -> None:
    reached: list[Call] = []

    def decide(call: Call) -> int | None:
        # The command itself makes no directories but the two that `create_source` asks for.
        if (call.name, call.nth, call.process) != ("mkdirat", 2, 0):
            return None
        reached.append(call)
        return errno.ENOMEM

    with open_scene(session) as scene:
        before = scene.picture()
        assert scene.run("apply", "--auto-approve", "-f", scene.second, decide=decide).code == 3
        assert reached
        assert difference(before, scene.picture()) == []

"""Dies at one point of a job, recovers, and looks whether everything is wholly as before or wholly as wanted."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tests.containers.fingerprint import Fingerprint, difference
from tests.containers.session import Session
from tests.crash.jobs import Job, jobs
from tests.crash.scene import Scene, open_scene
from tests.crash.tracer import Call, Death, Ran, Verdict

SEED = 20261123
SAMPLE = 10
"""Points of each job that `make test` tries; `make test-crash` tries all."""
_MAX_SHOWN = 12


class Point(NamedTuple):
    """What happens at which call of a run."""

    call: Call
    verdict: Verdict

    def __str__(self) -> str:
        what = os.strerror(self.verdict) if isinstance(self.verdict, int) else f"death of {self.verdict}"
        return f"{what} at call {self.call.number}, {self.call.name} of process {self.call.process}"


class Tally:
    """How many points were tried, by job and system call, and what became of them."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counter[str]] = {}

    def count(self, job: str, call: str, outcome: str) -> None:
        self.counts.setdefault((job, call), Counter())[outcome] += 1


TALLY = Tally()


class Trial:
    """One job on a scene of its own: its recording, and the two states that are right after a death."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self._session = session
        self._open()

    def _open(self) -> None:
        self._opened = open_scene(self._session)
        self.scene: Scene = self._opened.__enter__()
        self.job: Job = jobs(self.scene)[self.name]
        self._record()

    def close(self) -> None:
        self._opened.__exit__(None, None, None)

    def _record(self) -> None:
        """Runs the job once without a death."""
        scene, job = self.scene, self.job
        self._prepare()
        self.before: Fingerprint = scene.picture()
        self._crash_at = 0
        if job.crashed:
            arguments, choose = job.crashed
            self._crash_at = choose(scene.done(*arguments).calls)
            self._after_crash: Fingerprint | None = scene.picture()
            self._reset()
            self._crash()
        ran = scene.run(*job.command)
        assert ran.code == job.code, f"{job.name}: exit code {ran.code}\n{ran.output}"
        self.calls = ran.calls
        self.after = self._after_crash if job.crashed and self._after_crash else scene.picture()
        self._reset()

    def _prepare(self) -> None:
        for arguments in self.job.prepare:
            self.scene.done(*arguments)

    def _reset(self) -> None:
        """Back to where the job begins, by way of nothing."""
        owned = [container.name for container in self.scene.containers]
        records = self.scene.records()
        owned = [name for name in owned if records.get(f"{name}.json")]
        if owned:
            self.scene.done("destroy", "--auto-approve", *owned)
        self._prepare()
        wrong = difference(self.before, self.scene.picture())
        assert not wrong, "the scene is not as before: " + "; ".join(wrong[:_MAX_SHOWN])

    def _crash(self) -> None:
        assert self.job.crashed
        ran = self.scene.run(
            *self.job.crashed[0], decide=lambda call: Death.OF_ALL if call.number == self._crash_at else None
        )
        assert ran.code is None, f"did not die at call {self._crash_at}"

    # points

    def deaths(self) -> list[Point]:
        """Every call at which something dies; those of a child twice, since it can die alone."""
        points = [Point(call, Death.OF_ALL) for call in self.calls]
        points += [Point(call, Death.OF_PROCESS) for call in self.calls if call.process]
        return sorted(points, key=lambda point: point.call.number)

    def try_all(self, points: Sequence[Point]) -> list[str]:
        """What went wrong, a text for each point that did not survive."""
        failed = []
        for point in points:
            trouble = self._try(point)
            if trouble is None:
                TALLY.count(self.name, point.call.name, "not reached")
                continue
            TALLY.count(self.name, point.call.name, "failed" if trouble else "survived")
            if trouble:
                failed.append(f"{self.name}: {point}: {trouble}")
                self.close()
                self._open()
        return failed

    def _try(self, point: Point) -> str | None:
        """What is wrong after this point; empty when nothing is, None when it was not reached."""
        if self.job.crashed:
            self._crash()
        reached: list[Call] = []

        def decide(call: Call) -> Verdict:
            if call.number != point.call.number or call.name != point.call.name:
                return None
            reached.append(call)
            return point.verdict

        ran = self.scene.run(*self.job.command, decide=decide)
        recovered = self.scene.run(*self.job.recover)
        trouble = self._judge(ran, recovered)
        return trouble if reached else None

    def _judge(self, ran: Ran, recovered: Ran) -> str:
        for one in (ran, recovered):
            if "Traceback" in one.output or "bug in scplan" in one.output:
                return f"broke down:\n{one.output}"
        if recovered.code:
            return f"recover ended with {recovered.code}:\n{recovered.output}\nafter:\n{ran.output}"
        picture = self.scene.picture()
        if not (from_before := difference(self.before, picture)):
            return ""
        if from_after := difference(self.after, picture):
            nearer = min(from_before, from_after, key=len)
            side = "before" if nearer is from_before else "wanted"
            shown = "\n    ".join(nearer[:_MAX_SHOWN])
            return f"neither as before nor as wanted; nearer to {side}, but\n    {shown}\n{recovered.output}"
        try:
            self._reset()
        except AssertionError as error:
            return str(error)
        return ""


def sample(points: list[Point], count: int) -> list[Point]:
    """An even choice: one of each of `count` equal stretches, always the same ones. All when CRASH_POINTS is `all`."""
    if os.environ.get("CRASH_POINTS") == "all" or count >= len(points):
        return points
    chance = random.Random(SEED)
    edges = [len(points) * index // count for index in range(count + 1)]
    return [points[chance.randrange(start, end)] for start, end in zip(edges, edges[1:], strict=False)]

"""Dies or fails at one point of a job, recovers, and looks whether all is wholly as before, or wholly as wanted."""

from __future__ import annotations

import ast
import errno
import hashlib
import os
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import scplan
from tests.containers.fingerprint import Fingerprint, difference
from tests.containers.session import Session
from tests.crash.jobs import Job, jobs
from tests.crash.scene import Scene, open_scene
from tests.crash.tracer import Call, Death, Ran, Request, Verdict
from tests.tried import TRIED

SEED = 20261123
ERRORS = (errno.EIO, errno.ENOSPC, errno.EPERM, errno.ENOMEM)
_MAX_SHOWN = 12
_NOTHING_LEFT = "Nothing to recover."
# What each exit code promises. A command that was killed promises nothing, nor does one whose undo was cut short, or
# which was interrupted: that may have been before anything was begun, or when all was done.
_BEFORE, _WANTED = "as before", "as wanted"
_PROMISED: dict[int | None, tuple[str, ...]] = {
    0: (_WANTED,),
    1: (_BEFORE,),
    3: (_BEFORE,),
    4: (_BEFORE, _WANTED),
    130: (_BEFORE, _WANTED),
    None: (_BEFORE, _WANTED),
}


class Point(NamedTuple):
    """What happens at which call of a run."""

    call: Call
    verdict: Verdict
    recover: tuple[str, ...]

    def __str__(self) -> str:
        match self.verdict:
            case Death():
                what = f"death of {self.verdict.value}"
            case Request():
                what = self.verdict.value.name
            case error:
                what = os.strerror(error or 0)
        call, recover = self.call, " ".join(self.recover)
        return f"{what} at call {call.number}, {call.name} of process {call.process}, then {recover}"


class Trial:
    """One job on a scene of its own: its recording, and the two states that are right after a death."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self._session = session
        self._open()

    def _open(self) -> None:
        self._opened = open_scene(self._session)
        self.scene: Scene = self._opened.__enter__()
        try:
            self.job: Job = jobs(self.scene)[self.name]
            self._record()
        except BaseException:
            # Who never got the trial can't close it, and the next test would see its links go.
            self.close()
            raise

    def close(self) -> None:
        self._opened.__exit__(None, None, None)

    def _record(self) -> None:
        """Runs the job once without a death."""
        scene, job = self.scene, self.job
        self._prepare()
        self.before: Fingerprint = scene.picture()
        if job.crashed:
            arguments, choose = job.crashed
            calls = scene.done(*arguments).calls
            self._crash_at = calls[choose(calls) - 1]
            self._wanted_of_crashed: Fingerprint | None = scene.picture()
            self._reset()
            self._crash()
        ran = scene.run(*job.command)
        assert ran.code == job.code, f"{job.name}: exit code {ran.code}\n{ran.output}"
        self.calls = ran.calls
        self.wanted = self._wanted_of_crashed if job.crashed and self._wanted_of_crashed else scene.picture()
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
            *self.job.crashed[0], decide=lambda call: Death.OF_ALL if call.is_same(self._crash_at) else None
        )
        assert ran.code is None, f"did not die at call {self._crash_at}"

    # points

    def deaths(self) -> list[Point]:
        """Every call at which something dies; those of a child twice, since it can die alone."""
        return [
            Point(call, death, recover)
            for call in self.calls
            for death in (Death.OF_ALL, *([Death.OF_PROCESS] if call.process else []))
            for recover in self.job.recover
        ]

    def requests(self) -> list[Point]:
        """Every call at which scplan is asked to stop."""
        return [Point(call, request, ("recover",)) for call in self.calls for request in Request]

    def errors(self) -> list[Point]:
        """Every call with each of the errors."""
        return [Point(call, error, ("recover",)) for call in self.calls for error in ERRORS]

    def try_all(self, points: Sequence[Point]) -> list[str]:
        """What went wrong, a text for each point that did not survive."""
        failed = []
        for point in points:
            if _DONE.has(f"{self.name}: {point}"):
                self._count(point, "survived an earlier run")
                continue
            trouble = self._try(point)
            if trouble is None:
                self._count(point, "not reached")
                continue
            self._count(point, "failed" if trouble else "survived")
            if trouble:
                failed.append(f"{self.name}: {point}: {trouble}")
                _tell(failed[-1])
                self.close()
                self._open()
            else:
                _DONE.add(f"{self.name}: {point}")
        return failed

    def _count(self, point: Point, outcome: str) -> None:
        """By command and system call, for the end of the run."""
        what = {Death: "deaths", Request: "requests to stop"}.get(type(point.verdict), "errors")
        TRIED[f"{what} in `{self.name}`"][f"{point.call.name} {outcome}"] += 1

    def _try(self, point: Point) -> str | None:
        """What is wrong after this point; empty when nothing is, None when it was not reached."""
        if self.job.crashed:
            self._crash()
        reached: list[Call] = []

        def decide(call: Call) -> Verdict:
            if not call.is_same(point.call):
                return None
            reached.append(call)
            return point.verdict

        ran = self.scene.run(*self.job.command, decide=decide)
        recovered = self.scene.run(*point.recover)
        trouble = self._judge(ran, recovered)
        if isinstance(point.verdict, Request) and not self.job.crashed and _NOTHING_LEFT not in recovered.output:
            trouble = trouble or f"it left something half done: {ran.output}\nrecover: {recovered.output}"
        return trouble if reached else None

    def _judge(self, ran: Ran, recovered: Ran) -> str:
        told = f"exit code {ran.code}:\n{ran.output}\nrecover: exit code {recovered.code}:\n{recovered.output}"
        # 3: a recovery forward that failed, and undid all.
        if recovered.code not in (0, 3) or any(words in told for words in ("Traceback", "bug in scplan")):
            return told
        picture = self.scene.picture()
        from_before, from_wanted = difference(self.before, picture), difference(self.wanted, picture)
        state = _BEFORE if not from_before else _WANTED if not from_wanted else ""
        if not state:
            nearer = min(from_before, from_wanted, key=len)
            shown = "\n    ".join(nearer[:_MAX_SHOWN])
            return f"neither as before nor as wanted; from the nearer\n    {shown}\n{told}"
        if from_wanted and state not in self._promised(ran, recovered):
            return f"the state is {state}, which belies the {told}"
        if from_before:
            self._reset()
        return ""

    def _promised(self, ran: Ran, recovered: Ran) -> tuple[str, ...]:
        """The states that the exit codes allow."""
        if recovered.code == 3:
            return (_BEFORE,)
        if self.job.crashed and ran.code == 0:
            # Forward and back are both right for a recovery.
            return (_BEFORE, _WANTED)
        return _PROMISED.get(ran.code, ())


def _tell(failure: str) -> None:
    """Keeps it at once in the file CRASH_FAILURES: a run of all points takes long, and may be ended."""
    if path := os.environ.get("CRASH_FAILURES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{failure}\n\n")


class _Done:
    """Points that survived, in the file CRASH_DONE: a run of all points takes hours, and another one goes on with it.

    They are about the code as it was then: its digest is part of each line, without docstrings and comments.
    """

    def __init__(self) -> None:
        self._path = os.environ.get("CRASH_DONE")
        self._known: set[str] | None = None

    def has(self, point: str) -> bool:
        if self._path is None:
            return False
        if self._known is None:
            self._code = _digest_of_code()
            self._known = set(Path(self._path).read_text().splitlines()) if Path(self._path).exists() else set()
        return f"{self._code} {point}" in self._known

    def add(self, point: str) -> None:
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{self._code} {point}\n")


def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(scplan.__path__[0]).rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [one for one in node.body if not _is_text(one)]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


_DONE = _Done()
PARTS = 4 if os.environ.get("CRASH_POINTS") == "all" else 1
"""Tests that all points of a job are shared out to, so that several processes can try them."""


def sample(points: list[Point], count: int, part: int = 0) -> list[Point]:
    """An even choice: one of each of `count` equal stretches, always the same ones.

    CRASH_POINTS is another count, or `all`, which gives each part its share of them.
    """
    wanted = os.environ.get("CRASH_POINTS", str(count))
    if wanted == "all":
        return points[part::PARTS]
    count = int(wanted)
    if count >= len(points):
        return points
    chance = random.Random(SEED)
    edges = [len(points) * index // count for index in range(count + 1)]
    return [points[chance.randrange(start, end)] for start, end in pairwise(edges)]

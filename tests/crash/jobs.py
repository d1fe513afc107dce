"""What is done to scplan at each point: a command, what comes before it, and how its death is recovered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.crash.scene import Scene
from tests.crash.tracer import Call

Arguments = tuple[str, ...]


class Job(NamedTuple):
    """A command that dies at each of its points. `prepare` leads from nothing to where it begins.

    Each point is tried with each of the ways to `recover`. `crashed` is for recoveries: the command before it, and at
    which of its calls that dies.
    """

    name: str
    prepare: tuple[Arguments, ...]
    command: Arguments
    recover: tuple[Arguments, ...] = (("recover",),)
    code: int = 0
    crashed: tuple[Arguments, Callable[[Sequence[Call]], int]] | None = None


def jobs(scene: Scene) -> dict[str, Job]:
    """The table: a command that writes is a line here."""

    def apply(file: str) -> Arguments:
        return ("apply", "--auto-approve", "-f", file)

    first, second, impossible = apply(scene.first), apply(scene.second), apply(scene.impossible)
    destroy = ("destroy", "--auto-approve", *(container.name for container in scene.containers))
    auto, forward, back = ("recover",), ("recover", "--forward"), ("recover", "--back")
    table = [
        Job("apply", (first,), second, (auto, forward, back)),
        Job("apply the other way", (second,), first),
        Job("apply that fails", (first,), impossible, (auto, forward), code=3),
        Job("destroy", (second,), destroy, (auto, forward)),
        Job("undo", (first, second), ("undo", "--auto-approve"), (auto, forward)),
        Job("recover", (first,), auto, crashed=(second, _before_applied)),
        Job("recover when all was made", (first,), auto, crashed=(second, _among_records)),
        Job("recover --back when all was made", (first,), back, (auto, forward), crashed=(second, _among_records)),
        Job("recover --forward", (first,), forward, (auto, back), crashed=(second, _in_the_middle)),
    ]
    return {job.name: job for job in table}


def _before_applied(calls: Sequence[Call]) -> int:
    """All operations are made, and the journal does not say so yet: the longest undo."""
    before = [call for call in calls if call.number < _among_records(calls)]
    said = max(call.number for call in before if call.name == "fdatasync")
    return max(call.number for call in before if call.name == "write" and call.number < said)


def _among_records(calls: Sequence[Call]) -> int:
    """The first of the two records is in place, and the second one is about to be; the last rename is the journal's."""
    renames = [call.number for call in calls if call.name == "rename"]
    return renames[-2]


def _in_the_middle(calls: Sequence[Call]) -> int:
    """In a child, between two operations of one resource, when a third of all is done."""
    return next(call.number for call in calls[len(calls) // 3 :] if call.name == "move_mount")

"""What is done to scplan at each point: a command, what comes before it, and how its death is recovered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.crash.scene import Scene
from tests.crash.tracer import Call

Arguments = tuple[str, ...]


class Job(NamedTuple):
    """A command that dies at each of its points. `prepare` leads from nothing to where it begins.

    `crashed` is for recoveries: the command before it, and at which of its calls that dies.
    """

    name: str
    prepare: tuple[Arguments, ...]
    command: Arguments
    recover: Arguments = ("recover",)
    code: int = 0
    crashed: tuple[Arguments, Callable[[Sequence[Call]], int]] | None = None


def jobs(scene: Scene) -> dict[str, Job]:
    """The table: a command that writes is a line here."""

    def apply(file: str) -> Arguments:
        return ("apply", "--auto-approve", "-f", file)

    first, second, impossible = apply(scene.first), apply(scene.second), apply(scene.impossible)
    destroy = ("destroy", "--auto-approve", *(container.name for container in scene.containers))
    forward, back = ("recover", "--forward"), ("recover", "--back")
    table = [
        Job("apply", (first,), second),
        Job("apply, forward", (first,), second, forward),
        Job("apply, back", (first,), second, back),
        Job("apply the other way", (second,), first),
        Job("apply that fails", (first,), impossible, code=3),
        Job("apply that fails, forward", (first,), impossible, forward, code=3),
        Job("destroy", (second,), destroy),
        Job("destroy, forward", (second,), destroy, forward),
        Job("recover", (first,), ("recover",), crashed=(second, _before_applied)),
        Job("recover when all was made", (first,), ("recover",), crashed=(second, _among_records)),
        Job("recover --back when all was made", (first,), back, crashed=(second, _among_records)),
        Job("recover --back, then --forward", (first,), back, forward, crashed=(second, _among_records)),
        Job("recover --forward", (first,), forward, crashed=(second, _in_the_middle)),
        Job("recover --forward, then --back", (first,), forward, back, crashed=(second, _in_the_middle)),
    ]
    return {job.name: job for job in table}


def _before_applied(calls: Sequence[Call]) -> int:
    """All operations are made, and the journal does not say so yet: the longest undo."""
    return next(call.number for call in reversed(calls) if call.name == "fdatasync") - 3


def _among_records(calls: Sequence[Call]) -> int:
    """One of the two records is in place."""
    renames = [call.number for call in calls if call.name == "rename"]
    return renames[-2]


def _in_the_middle(calls: Sequence[Call]) -> int:
    """In a child, between two operations of one resource, when a third of all is done."""
    return next(call.number for call in calls[len(calls) // 3 :] if call.name == "move_mount")

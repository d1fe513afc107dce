"""What commands report besides a plan: events of an apply, drift, owned resources, what the host supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

from scplan.errors import Diagnostic
from scplan.model.address import Address
from scplan.model.change import Action, Operation, Plan
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource


class Step(StrEnum):
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"


class Event(NamedTuple):
    """One step of an apply or of its rollback. `number` counts operations up to `total`; `seconds` is its duration."""

    step: Step
    operation: Operation
    number: int
    total: int
    seconds: float = 0.0
    error: str = ""


OnEvent = Callable[[Event], None]


class Outcome(NamedTuple):
    """How an apply ended when it did not raise: `apply_id` names its record in the history."""

    apply_id: str
    summary: Mapping[Action, int]
    seconds: float


class Drifted(NamedTuple):
    """An owned resource that is not as its record says; `live` is None when it is gone."""

    address: Address
    changed: tuple[str, ...]
    recorded: Resource
    live: Resource | None


class DriftReport(NamedTuple):
    """`drifted`: what is owned and differs from live. `pending`: what the files ask for and was never applied."""

    containers: Mapping[str, ContainerFacts]
    checked: int
    drifted: tuple[Drifted, ...]
    pending: Plan
    diagnostics: tuple[Diagnostic, ...] = ()


class Owned(NamedTuple):
    """A resource in the records. `live` is None when it is gone or could not be read; `problem` says why."""

    address: Address
    runtime: str
    container_id: str
    recorded: Resource
    live: Resource | None
    problem: str = ""


class Support(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Finding(NamedTuple):
    """One thing that `doctor` looked at. `needed_for` says what does not work without it."""

    topic: str
    subject: str
    support: Support
    detail: str = ""
    needed_for: str = ""

"""What commands report besides a plan: events of an apply, drift, owned resources, what the host supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

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


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of an apply or of its rollback. `number` counts operations from 1 to `total`; `seconds` is its duration."""

    step: Step
    operation: Operation
    number: int
    total: int
    seconds: float = 0.0
    error: str = ""


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an apply ended when it did not raise: `apply_id` names its record in the history."""

    apply_id: str
    summary: Mapping[Action, int]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """An owned resource that is not as its record says; `live` is None when it is gone."""

    address: Address
    changed: tuple[str, ...]
    recorded: Resource
    live: Resource | None


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """`drifted`: what is owned and differs from live. `pending`: what the files ask for and was never applied."""

    containers: Mapping[str, ContainerFacts]
    checked: int
    drifted: tuple[Drifted, ...]
    pending: Plan
    diagnostics: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Owned:
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


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that `doctor` looked at. `needed_for` says what does not work without it."""

    topic: str
    subject: str
    support: Support
    detail: str = ""
    needed_for: str = ""

"""Results of commands, besides plans: events of an apply, drift, owned resources, the host's support."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scplan.errors import Diagnostic, Severity
from scplan.model.address import Address
from scplan.model.change import Action, Operation, Plan
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.model.probe import Probe


class Step(StrEnum):
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"


class Event(NamedTuple):
    """A step of an apply or of its rollback. `number` is the operation's, of `total`; `seconds` is the duration."""

    step: Step
    operation: Operation
    number: int
    total: int
    seconds: float = 0.0
    error: str = ""


class Probed(NamedTuple):
    """A probe that begins (STARTED), passed (DONE) or FAILED. `output` is the end of its output."""

    step: Step
    probe: Probe
    number: int
    total: int
    seconds: float = 0.0
    error: str = ""
    output: str = ""


class GoingBack(NamedTuple):
    """An apply that was interrupted. `operations` is the number of operations, made or begun, that it now undoes."""

    reason: str
    operations: int


OnEvent = Callable[[Event | Probed | GoingBack], None]


class Outcome(NamedTuple):
    """Result of an apply that did not raise. `apply_id` names its journal in the history.

    `confirm_within_s` is set if the apply is undone unless it is confirmed in that time. `at_next_start` is the number
    of changes that wait for the start of their container.
    """

    apply_id: str
    summary: Mapping[Action, int]
    seconds: float
    confirm_within_s: float | None = None
    at_next_start: int = 0


class Imported(NamedTuple):
    """A container as a configuration.

    `document` is a valid configuration. `left_out` are the resources without an entry, each (section, resource,
    reason). `sections` are the names of all sections of a configuration, in order.
    """

    facts: ContainerFacts
    document: Mapping[str, Any]
    left_out: tuple[tuple[str, str, str], ...]
    sections: tuple[str, ...]


class Ended(StrEnum):
    """Outcome of an apply, as the history shows it."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    UNDONE = "undone"
    AWAITING = "awaiting_confirmation"
    RUNNING = "running"
    NEEDS_RECOVERY = "needs_recovery"
    UNREADABLE = "unreadable"


class Past(NamedTuple):
    """An apply of the history.

    `begun` and `ended` are in seconds since the epoch. `counts` are the numbers of operations by action. `reason` is
    why the apply was rolled back. `undoes` is the ID of the apply that it undid. `left_s` is the time in seconds in
    which it can still be confirmed. `problem` is why the journal can't be read; only `apply_id` and `outcome` are set
    then.
    """

    apply_id: str
    outcome: Ended
    begun: float = 0.0
    ended: float | None = None
    user: str = ""
    uid: int | None = None
    command: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    configuration: str = ""
    containers: tuple[str, ...] = ()
    counts: Mapping[Action, int] = MappingProxyType({})
    undoes: str = ""
    reason: str = ""
    left_s: float = 0.0
    problem: str = ""


class Drifted(NamedTuple):
    """An owned resource that differs from its record. `live` is None if the resource is gone."""

    address: Address
    changed: tuple[str, ...]
    recorded: Resource
    live: Resource | None


class DriftReport(NamedTuple):
    """Result of a drift check.

    `checked` is the number of owned resources. `drifted` are those that differ from their records. `waiting` are those
    of containers that do not run; they wait for the next start. `pending` are changes that the configuration asks for
    and that were not applied.
    """

    containers: Mapping[str, ContainerFacts]
    checked: int
    drifted: tuple[Drifted, ...]
    pending: Plan
    diagnostics: tuple[Diagnostic, ...] = ()
    waiting: tuple[Address, ...] = ()

    @property
    def problems(self) -> int:
        """Number of errors: records, containers and entries that could not be read, located or planned."""
        return sum(one.severity is Severity.ERROR for one in self.diagnostics)


class Owned(NamedTuple):
    """A resource in the records.

    `live` is None if the resource is gone or could not be read; `problem` is why it could not be read. `at_next_start`
    is True if its container does not run.
    """

    address: Address
    runtime: str
    container_id: str
    recorded: Resource
    live: Resource | None
    problem: str = ""
    at_next_start: bool = False


class Moved(NamedTuple):
    """Records that were moved from one container to another. `addresses` are (old, new) of each resource.

    `source` is RUNTIME/NAME of the old container, `source_id` its ID. `returned` reports the things that were returned
    to the host.
    """

    source: str
    source_id: str
    target: ContainerFacts
    addresses: tuple[tuple[Address, Address], ...]
    returned: tuple[Diagnostic, ...] = ()


class Occasion(StrEnum):
    """Occasions on which `scplan watch` reports."""

    WATCHING = "watching"
    STARTED = "started"
    STOPPED = "stopped"
    DRIFTED = "drifted"
    HEALED = "healed"
    RESTORED = "restored"
    PROBLEM = "problem"
    SOLVED = "solved"
    DEGRADED = "degraded"
    RECOVERED = "recovered"
    ENDING = "ending"


class Notice(NamedTuple):
    """A report of `scplan watch` about a container, or, with an empty name, about the watch itself.

    `resources` is the number of resources that were attached or repaired (WATCHING: of containers), `seconds` the time
    since the first event that led to it. `drifted` are all resources that differ now. `diagnostics` are problems.
    `lines` are more details.
    """

    occasion: Occasion
    container: str = ""
    runtime: str = ""
    resources: int = 0
    seconds: float = 0.0
    drifted: tuple[Drifted, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    lines: tuple[str, ...] = ()


class Tally(NamedTuple):
    """Counts of `scplan watch`: resources by (runtime, container name) now, and its actions since it began."""

    drifted: Mapping[tuple[str, str], int]
    problems: Mapping[tuple[str, str], int]
    owned: int
    starts: int
    heals: int


class Support(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Finding(NamedTuple):
    """Something that `scplan doctor` checked. `needed_for` names the features that don't work without it."""

    topic: str
    subject: str
    support: Support
    detail: str = ""
    needed_for: str = ""

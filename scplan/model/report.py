"""What commands report besides a plan: events of an apply, drift, owned resources, what the host supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from scplan.errors import Diagnostic, Severity
from scplan.model.address import Address
from scplan.model.change import Action, Operation, Plan
from scplan.model.live import ContainerFacts
from scplan.model.probe import Probe
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple


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


class Probed(NamedTuple):
    """A probe that begins (STARTED), passed (DONE) or FAILED; `output` is the end of what it wrote."""

    step: Step
    probe: Probe
    number: int
    total: int
    seconds: float = 0.0
    error: str = ""
    output: str = ""


class GoingBack(NamedTuple):
    """An apply that was interrupted: `operations`, made or begun, are undone from now on. `reason` says why."""

    reason: str
    operations: int


OnEvent = Callable[[Event | Probed | GoingBack], None]


class Outcome(NamedTuple):
    """How an apply ended when it did not raise: `apply_id` names its record in the history.

    `confirm_within_s` is set when it is undone unless it is confirmed in that time. `at_next_start` is how many of the
    changes wait for the start of their container.
    """

    apply_id: str
    summary: Mapping[Action, int]
    seconds: float
    confirm_within_s: float | None = None
    at_next_start: int = 0


class Imported(NamedTuple):
    """A container as a configuration: `document` is valid as one; `left_out` is (section, what, why) of the rest.

    `sections` are the names of all there can be, in order.
    """

    facts: ContainerFacts
    document: Mapping[str, Any]
    left_out: tuple[tuple[str, str, str], ...]
    sections: tuple[str, ...]


class Ended(StrEnum):
    """What became of an apply."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    UNDONE = "undone"
    AWAITING = "awaiting_confirmation"
    RUNNING = "running"
    NEEDS_RECOVERY = "needs_recovery"
    UNREADABLE = "unreadable"


class Past(NamedTuple):
    """One apply of the history. Times are in seconds since the epoch; `counts` has operations by action.

    `problem` says why the journal can't be read; all but `apply_id` is empty then. `reason` says why it was rolled
    back, `undoes` which apply it took back. `left_s` is the time in which it can still be confirmed.
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
    """An owned resource that is not as its record says; `live` is None when it is gone."""

    address: Address
    changed: tuple[str, ...]
    recorded: Resource
    live: Resource | None


class DriftReport(NamedTuple):
    """`drifted`: what is owned and differs from live. `pending`: what the files ask for and was never applied.

    `waiting`: what is owned in containers that do not run, and waits for their next start.
    """

    containers: Mapping[str, ContainerFacts]
    checked: int
    drifted: tuple[Drifted, ...]
    pending: Plan
    diagnostics: tuple[Diagnostic, ...] = ()
    waiting: tuple[Address, ...] = ()

    @property
    def problems(self) -> int:
        """How many errors there are about what could not be read, located or planned."""
        return sum(one.severity is Severity.ERROR for one in self.diagnostics)


class Owned(NamedTuple):
    """A resource in the records. `live` is None when it is gone or could not be read; `problem` says why.

    One that is `at_next_start` is in a container that does not run.
    """

    address: Address
    runtime: str
    container_id: str
    recorded: Resource
    live: Resource | None
    problem: str = ""
    at_next_start: bool = False


class Moved(NamedTuple):
    """Records that were carried over from a container to another one: (old, new) address of each.

    `source_id` is the ID of the container that they were about. `returned` says what the host has back.
    """

    source: str
    source_id: str
    target: ContainerFacts
    addresses: tuple[tuple[Address, Address], ...]
    returned: tuple[Diagnostic, ...] = ()


class Occasion(StrEnum):
    """What a supervisor tells about."""

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
    """Something that a supervisor has done or seen, in a container or (with an empty name) in all.

    `resources` counts what was plugged in, `seconds` is how long after the first hint it was done. `drifted` is all
    that differs now, `diagnostics` are problems, `lines` say more.
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
    """What a supervisor knows of its containers, by runtime and name, and how often it did something since it began."""

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
    """One thing that `doctor` looked at. `needed_for` says what does not work without it."""

    topic: str
    subject: str
    support: Support
    detail: str = ""
    needed_for: str = ""

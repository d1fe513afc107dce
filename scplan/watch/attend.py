"""Attends to a container: acts on its start or end, and reports differences from its records.

The work is the same for any hint, or none: resources are returned to the host when the container has ended, reattached
when it has started, and compared (and repaired) while it runs. It runs in a child, so that the supervisor never waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

# Modules of an apply, imported once here: otherwise each child would import them again.
from scplan.applying import apply, execute, recovery, rollback  # noqa: F401
from scplan.errors import (
    AwaitingConfirmation,
    ContainerGone,
    ContainerNotFound,
    ContainerReplaced,
    Diagnostic,
    Locked,
    ScplanError,
)
from scplan.kinds import KINDS
from scplan.kinds.kind import Hears
from scplan.linux.host import Host
from scplan.model.live import ContainerFacts, Status
from scplan.model.report import Drifted
from scplan.runtimes import RUNTIMES
from scplan.runtimes.runtime import Runtime, Signs
from scplan.startup.named_tuple import NamedTuple
from scplan.store import journal  # noqa: F401
from scplan.store.state import Record, State
from scplan.workflow import plugging
from scplan.workflow.recorded import ask, find_again, gone, is_plugged_in, locate_recorded
from scplan.workflow.reporting import drifted_in
from scplan.workflow.scene import Request, Scene, read_records
from scplan.workflow.settled import is_quiet

Key = tuple[str, str]
"""Runtime and name of a container."""


class WorkDone(NamedTuple):
    """Work done in a container: the number of resources attached or changed, and further lines to report."""

    changed: int = 0
    lines: tuple[str, ...] = ()


class Seen(NamedTuple):
    """Result of attending to a container.

    `facts` is None if scplan owns nothing in the container. `problems` are reasons why something could not be done or
    read; `drifted` are the differences that remain after the work. `busy` (an apply was at work, or awaits
    confirmation) and `failed` mean that the container must be attended to again, and that its state is unknown.
    """

    key: Key
    facts: ContainerFacts | None = None
    signs: Signs = Signs()
    hears: frozenset[Hears] = frozenset()
    host_links: frozenset[str] = frozenset()
    owned: int = 0
    gave_back: bool = False
    started: WorkDone | None = None
    healed: WorkDone | None = None
    drifted: tuple[Drifted, ...] = ()
    problems: tuple[Diagnostic, ...] = ()
    busy: bool = False
    failed: bool = False


class Order(NamedTuple):
    """Options of attending. `heal` repairs drift. `patient` reports drift even while an apply is at work.

    With `asks_engines`, an unreachable engine is a problem of a running container, too; otherwise only of an ended
    container, since only the engine can report the container's next start.
    """

    request: Request
    heal: bool
    patient: bool = False
    asks_engines: bool = False


def attend(keys: Sequence[Key], order: Order) -> list[Seen]:
    """Attends to each of these containers; returns the results in the same order."""
    state = State(order.request.state_dir, KINDS)
    with Host() as host:
        return [_attend_safely(key, order, state, host) for key in keys]


def _attend_safely(key: Key, order: Order, state: State, host: Host) -> Seen:
    """Attends to a container, with any error in the result: the other containers must not wait because of it.

    If the record cannot be read, the result has only the key and the error.
    """
    seen = Seen(key)
    try:
        record = state.read(*key)
        if record is None:
            return seen
        seen = _known(key, record)
        return _attend(seen, record, order, state, host)
    except (Locked, AwaitingConfirmation, ContainerGone):
        return seen._replace(busy=True)
    except ScplanError as error:
        said = error.diagnostics
    except OSError as error:
        said = (Diagnostic(summary=f"container {key[1]}: {error.filename or 'system call'}: {error.strerror}"),)
    except Exception as error:
        said = (Diagnostic(summary=f"container {key[1]}: {type(error).__name__}: {error}; this is a bug in scplan"),)
    return seen._replace(problems=said, failed=True)


def _known(key: Key, record: Record) -> Seen:
    """The part of a result that needs the record alone."""
    runtime = RUNTIMES.get(record.runtime)
    kinds = {address.kind for address in record.resources}
    return Seen(
        key,
        gone(record),
        _signs(runtime, record) if runtime else Signs(),
        frozenset(one for kind in kinds if (one := KINDS[kind].hears) is not None),
        frozenset(
            link
            for address, resource in record.resources.items()
            for link in KINDS[address.kind].host_links(address, resource)
        ),
        len(record.resources),
    )


def _signs(runtime: Runtime, record: Record) -> Signs:
    """Signs of a start of the record's container; also polled if a re-created container may have a new ID."""
    signs = runtime.signs(record.name, record.id, record.place)
    return signs._replace(is_polled=True) if record.follows_name else signs


def _attend(seen: Seen, record: Record, order: Order, state: State, host: Host) -> Seen:
    if is_plugged_in(record, host.boot_id):
        seen = _compare(seen, record, record.facts(), order, state, host)
        silent = ask(record, find_again).silent if order.asks_engines else None
        return seen if silent is None else seen._replace(problems=(*seen.problems, *silent.diagnostics))
    if record.start_time or record.has_lent:
        # The container has ended, whatever its runtime reports, and even if the runtime does not answer.
        host.forget()
        seen = seen._replace(gave_back=plugging.end(record, state, host, order.request))
    try:
        facts = _found_again(record)
    except ScplanError as error:
        return seen._replace(problems=error.diagnostics, failed=True)
    if facts.status is Status.STOPPED:
        return seen._replace(facts=facts)
    doubt = RUNTIMES[record.runtime].doubts(facts, record.id)
    if doubt:
        raise ScplanError(
            f"container {record.name}: process {facts.pid} is not taken for it", detail=doubt, hint="`scplan apply`"
        )
    host.forget()
    done = plugging.start(facts, state, host, order.request)
    return seen._replace(facts=facts, started=WorkDone(done.changed, (*done.settled, *done.said)))


def _found_again(record: Record) -> ContainerFacts:
    """The container as its runtime knows it; stopped if it was removed, since it may be re-created.

    Raises ScplanError.
    """
    try:
        return locate_recorded(record)
    except ContainerReplaced:
        raise
    except ContainerNotFound:
        return gone(record)


def _compare(seen: Seen, record: Record, facts: ContainerFacts, order: Order, state: State, host: Host) -> Seen:
    """Compares a running container with its record; repairs drift if `order` asks for it."""
    before = state.last_begun_or_ended()
    scene = Scene({record.name: facts}, {}, partial(read_records, state))
    drifted, problems = drifted_in(scene, host)
    if not is_quiet(state, before) and not order.patient:
        return seen._replace(facts=facts, busy=True)
    seen = seen._replace(facts=facts, drifted=drifted, problems=tuple(problems.values()))
    if not drifted or not order.heal:
        return seen
    host.forget()
    done = plugging.mend(facts, state, host, order.request)
    host.forget()
    still, problems = drifted_in(scene.only({record.name}), host)
    return seen._replace(
        healed=WorkDone(done.changed, tuple(done.said)), drifted=still, problems=tuple(problems.values())
    )

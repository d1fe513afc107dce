"""Attending to a container: what its life asks for is done, and what differs is told.

The same whatever the hint was, and also without one: given back when it has ended, plugged in when it has started,
compared (and mended) while it runs. Runs in a child of the supervisor, so that nothing keeps that waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

# What an apply needs is imported here, once: each child would import it anew.
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


class Deed(NamedTuple):
    """What was done in a container: how many resources were plugged in or changed, and what else is to be told."""

    changed: int = 0
    lines: tuple[str, ...] = ()


class Seen(NamedTuple):
    """What attending to a container came to.

    `facts` is None when scplan owns nothing in it. `problems` are why something could not be done or seen; `drifted` is
    what differs after all that was done. `busy` (an apply was at work, or awaits confirmation) and `failed` say that it
    has to be attended to again; in which state it is was not found out then.
    """

    key: Key
    facts: ContainerFacts | None = None
    signs: Signs = Signs()
    hears: frozenset[Hears] = frozenset()
    host_links: frozenset[str] = frozenset()
    owned: int = 0
    gave_back: bool = False
    started: Deed | None = None
    healed: Deed | None = None
    drifted: tuple[Drifted, ...] = ()
    problems: tuple[Diagnostic, ...] = ()
    busy: bool = False
    failed: bool = False


class Order(NamedTuple):
    """How to attend: `heal` mends what drifted. `patient` looks at what drifts while others apply, too.

    With `asks_engines` it is a problem of a running container, too, that its engine can't be reached; else it is one
    when the container has ended, since a new start can be found out by the engine alone.
    """

    request: Request
    heal: bool
    patient: bool = False
    asks_engines: bool = False


def attend(keys: Sequence[Key], order: Order) -> list[Seen]:
    """Attends to each of these containers."""
    state = State(order.request.state_dir, KINDS)
    with Host() as host:
        return [_attend_safely(key, order, state, host) for key in keys]


def _attend_safely(key: Key, order: Order, state: State, host: Host) -> Seen:
    """One container's trouble must not keep the others waiting; `key` is all that is known of it then."""
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
    """What the record alone tells."""
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
    """Where it shows that the record's container starts; one that is made again has an ID that nobody knows yet."""
    signs = runtime.signs(record.name, record.id, record.place)
    return signs._replace(is_polled=True) if record.follows_name else signs


def _attend(seen: Seen, record: Record, order: Order, state: State, host: Host) -> Seen:
    if is_plugged_in(record, host.boot_id):
        seen = _compare(seen, record, record.facts(), order, state, host)
        silent = ask(record, find_again).silent if order.asks_engines else None
        return seen if silent is None else seen._replace(problems=(*seen.problems, *silent.diagnostics))
    if record.start_time or record.has_lent:
        # It has ended, whatever its runtime says, or whether that answers.
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
    return seen._replace(facts=facts, started=Deed(done.changed, (*done.settled, *done.said)))


def _found_again(record: Record) -> ContainerFacts:
    """The container as its runtime knows it; one that was removed may be made again. Raises ScplanError."""
    try:
        return locate_recorded(record)
    except ContainerReplaced:
        raise
    except ContainerNotFound:
        return gone(record)


def _compare(seen: Seen, record: Record, facts: ContainerFacts, order: Order, state: State, host: Host) -> Seen:
    """Tells what of a running container is not as recorded; mends it where that is wanted."""
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
    return seen._replace(healed=Deed(done.changed, tuple(done.said)), drifted=still, problems=tuple(problems.values()))

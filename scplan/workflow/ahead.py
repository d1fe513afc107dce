"""Comparison of live state with the records, by a child process per further CPU, while this process reads the files.

Most containers of a plan are as scplan left them, and most plans change few containers. The comparison of a container
with its record does not depend on the files, so it can run while they are still being read.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from scplan import observe
from scplan.errors import ScplanError
from scplan.kinds import KINDS
from scplan.kinds.kind import Kind
from scplan.linux.closing import Closing
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.linux.processes.namespaces import Child, is_ready
from scplan.model.comparison import account_of, differences
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple
from scplan.store.state import Record, State
from scplan.workflow.recorded import is_about

T = TypeVar("T")
WORTH_SHARING_OUT = 50
"""From so many containers on, looking at them in several processes is quicker than starting these takes."""
LOOKING_TIMEOUT_S = 300.0
_AT_A_TIME = 30
_SHARES_EACH = 8
_INDEX_BYTES = 4
_PATIENCE_S = 2.0
_PIPE_BYTES = 1 << 16

Life = tuple[str, str, int, int]
"""Runtime, name, PID and start time of a container: what was found out counts for the same process only."""


Accounts = Mapping[tuple[str, str], str | None]
"""Records to look at, by runtime and name; with an account, only a record with the same account_of."""


class Seen(NamedTuple):
    """Record of a container whose live state is as recorded: its ID, its place and the account_of of its resources."""

    id: str
    place: str
    account: str


def processes(containers: Collection[object]) -> int:
    """Number of processes for so many containers: at least one; each gets a CPU and enough containers."""
    # The CPUs that this process may use, which can be fewer than the host has. sched_getaffinity(2).
    return max(1, min(len(os.sched_getaffinity(0)), len(containers) // (WORTH_SHARING_OUT // 2)))


def is_worth_sharing_out(containers: Collection[object]) -> bool:
    """True if several processes look at so many containers faster than one."""
    return len(containers) >= WORTH_SHARING_OUT and processes(containers) > 1


def in_shares(names: Iterable[T], at_a_time: int = _AT_A_TIME) -> list[list[T]]:
    """The names in lists of `at_a_time`: the memory for a short list is reused for the next."""
    listed = list(names)
    return [listed[first : first + at_a_time] for first in range(0, len(listed), at_a_time)]


class LookAhead(Closing):
    """Child processes that compare recorded containers; each takes its next share from a queue, which is a pipe.

    Use it in a `with` block, which kills children that still work at its end.
    """

    def __init__(self, state: State, names: Sequence[tuple[str, str]]) -> None:
        """Start the children. `names` are (runtime, name) of the containers, in the order of the comparison."""
        from scplan.linux.network.netlink import SharedDump

        self._state = state
        # Several shares per process, so that all processes finish at about the same time.
        at_a_time = min(_AT_A_TIME, max(1, len(names) // (_SHARES_EACH * processes(names))))
        # All indexes must fit into the pipe, since no process reads yet: 65536 bytes by default. pipe(7).
        at_a_time = max(at_a_time, -(-len(names) * _INDEX_BYTES // _PIPE_BYTES))
        self._shares = in_shares(names, at_a_time)
        self._queue, writer = os.pipe2(os.O_CLOEXEC)
        os.write(writer, b"".join(index.to_bytes(_INDEX_BYTES, "little") for index in range(len(self._shares))))
        # Before the forks: without a writer, a reader of the empty pipe gets end of file. pipe(7).
        os.close(writer)
        self._dump = SharedDump()
        self._children = [
            Child(self._look, what="compare live state with the records", timeout_s=LOOKING_TIMEOUT_S)
            for _ in range(processes(names) - 1)
        ]

    def close(self) -> None:
        os.close(self._queue)
        self._dump.close()
        while self._children:
            self._children.pop().abandon()

    def as_recorded(
        self, containers: Mapping[str, ContainerFacts], accounts: Mapping[str, str] | None = None
    ) -> frozenset[str]:
        """Names of the containers whose live state equals their records; call it only once.

        With `accounts`, given for all containers: only containers whose record has this account_of. This process takes
        shares from the queue, too, but looks at these containers alone. Containers that can't be read are left out, and
        so are shares of a child that does not answer within _PATIENCE_S.
        """
        seen = self._look({_pair(one): accounts[name] if accounts else None for name, one in containers.items()})
        for child in self._children:
            # The queue is empty: the child is at its last share, or waits for a container that does not answer.
            if is_ready(child.fd, _PATIENCE_S):
                seen |= child.answer()
        found = {name: seen.get(_life(facts)) for name, facts in containers.items()}
        return frozenset(
            name
            for name, one in found.items()
            if one
            and is_about(one.id, one.place, containers[name])
            and (accounts is None or one.account == accounts[name])
        )

    def _look(self, asked: Accounts | None = None) -> dict[Life, Seen]:
        """Containers in the remaining shares that are as recorded; only containers in `asked`, if given."""
        seen: dict[Life, Seen] = {}
        # Each process needs its own netlink sockets: forked copies of one socket would read each other's answers.
        with Host(self._dump) as host:
            for share in self._next_shares():
                looked_at = (
                    dict.fromkeys(share) if asked is None else {one: asked[one] for one in share if one in asked}
                )
                seen.update(_as_recorded(self._state, looked_at, host))
        return seen

    def _next_shares(self) -> Iterator[Sequence[tuple[str, str]]]:
        """Shares from the queue, until it is empty."""
        while index := os.read(self._queue, _INDEX_BYTES):
            yield self._shares[int.from_bytes(index, "little")]


def _pair(facts: ContainerFacts) -> tuple[str, str]:
    return facts.runtime, facts.name


def _life(facts: ContainerFacts) -> Life:
    """Key of the container's present process."""
    return *_pair(facts), facts.pid, facts.start_time


def _as_recorded(state: State, asked: Accounts, host: Host) -> Iterator[tuple[Life, Seen]]:
    """Containers of a share that are as recorded.

    Each step is done for all containers, and kind by kind: its code and data stay in the CPU's caches.
    """
    records = [record for pair in asked if (record := _record(state, pair, host))]
    told = [(record, _account(record)) for record in records]
    with ExitStack() as stack:
        left = [
            opened
            for record, said in told
            if asked[record.runtime, record.name] in (None, said) and (opened := _opened(record, said, host, stack))
        ]
        for kind in KINDS.values():
            left = [one for one in left if _is_as_recorded(one, kind, host)]
    for one in left:
        yield _life(one.facts), one.seen


class _Opened(NamedTuple):
    """An open container, and its recorded resources by kind and identity."""

    facts: ContainerFacts
    seen: Seen
    container: Container
    recorded: Mapping[str, Mapping[str, Resource]]


# Records and containers that can't be read are left out here: planning meets their error again, and reports it.


def _record(state: State, pair: tuple[str, str], host: Host) -> Record | None:
    """The record; None if it can't be read, or its resources were not attached at this boot."""
    try:
        record = state.read(*pair)
    except (ScplanError, OSError):
        return None
    return record if record is not None and record.start_time and record.boot_id == host.boot_id else None


def _account(record: Record) -> str:
    return account_of((address.kind, address.identity, one) for address, one in record.resources.items())


def _opened(record: Record, said: str, host: Host, stack: ExitStack) -> _Opened | None:
    """The container, open until `stack` ends; None if it can't be opened."""
    # By the recorded process alone; no runtime is asked.
    facts = record.facts()
    try:
        container = stack.enter_context(observe.open_container(facts, host))
    except (ScplanError, OSError):
        return None
    recorded: dict[str, dict[str, Resource]] = {}
    for address, resource in record.resources.items():
        recorded.setdefault(address.kind, {})[address.identity] = resource
    return _Opened(facts, Seen(record.id, record.place, said), container, recorded)


def _is_as_recorded(one: _Opened, kind: Kind[Any], host: Host) -> bool:
    """True if all recorded resources of the kind are live without differences; False if they can't be read."""
    wanted = one.recorded.get(kind.name)
    if not wanted:
        return True
    try:
        live = kind.read(one.container, host, wanted)
    except (ScplanError, OSError):
        return False
    return all(identity in live and not differences(recorded, live[identity]) for identity, recorded in wanted.items())

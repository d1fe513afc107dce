"""Live state compared with the records, by a process for each other CPU, while this one reads the files.

Most containers of a plan are as scplan left them, and most plans change few. Whether a container is as recorded does
not depend on the files: it can be found out while they are still being read.
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
"""What is to be looked at, by runtime and name; with an account, only a record that says the same (account_of)."""


class Seen(NamedTuple):
    """A record of a container that is as recorded: its ID and place, and its resources as account_of has them."""

    id: str
    place: str
    account: str


def processes(containers: Collection[object]) -> int:
    """How many should look at so many containers: each needs enough to do, and a CPU."""
    return max(1, min(len(os.sched_getaffinity(0)), len(containers) // (WORTH_SHARING_OUT // 2)))


def is_worth_sharing_out(containers: Collection[object]) -> bool:
    return len(containers) >= WORTH_SHARING_OUT and processes(containers) > 1


def in_shares(names: Iterable[T], at_a_time: int = _AT_A_TIME) -> list[list[T]]:
    """A few at a time, so that the same memory is used again and again."""
    listed = list(names)
    return [listed[first : first + at_a_time] for first in range(0, len(listed), at_a_time)]


class LookAhead(Closing):
    """Processes at work on containers with records: whoever has time takes the next few from a queue, which is a pipe.

    Use it in a `with` block, at the end of which those that are still at work are ended.
    """

    def __init__(self, state: State, names: Sequence[tuple[str, str]]) -> None:
        """Starts them. `names` are runtime and name of containers, in the order in which they are looked at."""
        from scplan.linux.network.netlink import SharedDump

        self._state = state
        at_a_time = min(_AT_A_TIME, max(1, len(names) // (_SHARES_EACH * processes(names))))
        at_a_time = max(at_a_time, -(-len(names) * _INDEX_BYTES // _PIPE_BYTES))
        self._shares = in_shares(names, at_a_time)
        self._queue, writer = os.pipe2(os.O_CLOEXEC)
        os.write(writer, b"".join(index.to_bytes(_INDEX_BYTES, "little") for index in range(len(self._shares))))
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
        """The containers in which all that the records hold is there as they say; to be asked once.

        With `accounts` of all of them, those whose records say so (account_of). Takes part in looking, at those alone.
        What can't be read is not as recorded, nor is what a process had to look at that waits for a container for long.
        """
        seen = self._look({_pair(one): accounts[name] if accounts else None for name, one in containers.items()})
        for child in self._children:
            # The queue is empty: what it still looks at is a share, or does not answer.
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
        """What is as recorded, of the shares that are left; of what is not asked for, nothing is."""
        seen: dict[Life, Seen] = {}
        # A process of its own needs sockets of its own.
        with Host(self._dump) as host:
            for share in self._next_shares():
                looked_at = (
                    dict.fromkeys(share) if asked is None else {one: asked[one] for one in share if one in asked}
                )
                seen.update(_as_recorded(self._state, looked_at, host))
        return seen

    def _next_shares(self) -> Iterator[Sequence[tuple[str, str]]]:
        while index := os.read(self._queue, _INDEX_BYTES):
            yield self._shares[int.from_bytes(index, "little")]


def _pair(facts: ContainerFacts) -> tuple[str, str]:
    return facts.runtime, facts.name


def _life(facts: ContainerFacts) -> Life:
    return *_pair(facts), facts.pid, facts.start_time


def _as_recorded(state: State, asked: Accounts, host: Host) -> Iterator[tuple[Life, Seen]]:
    """Those that are, of a share.

    Step by step for all of them, and kind by kind: what one has warmed up is still in the CPU's caches for the next.
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
    """A container that is being looked at, and what its record says of each kind."""

    facts: ContainerFacts
    seen: Seen
    container: Container
    recorded: Mapping[str, Mapping[str, Resource]]


# What can't be read is left out: whoever plans for it finds the same, and says so.


def _record(state: State, pair: tuple[str, str], host: Host) -> Record | None:
    try:
        record = state.read(*pair)
    except (ScplanError, OSError):
        return None
    return record if record is not None and record.start_time and record.boot_id == host.boot_id else None


def _account(record: Record) -> str:
    return account_of((address.kind, address.identity, one) for address, one in record.resources.items())


def _opened(record: Record, said: str, host: Host, stack: ExitStack) -> _Opened | None:
    """The container, until the stack ends."""
    # The process that it was plugged into, by the record alone; no runtime is asked.
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
    wanted = one.recorded.get(kind.name)
    if not wanted:
        return True
    try:
        live = kind.read(one.container, host, wanted)
    except (ScplanError, OSError):
        return False
    return all(identity in live and not differences(recorded, live[identity]) for identity, recorded in wanted.items())

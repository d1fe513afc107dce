"""Changes and the operations that they are made of. Undo is derived: `Operation.inverse()` swaps before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType

from scplan.errors import Diagnostic
from scplan.model.address import Address
from scplan.model.live import ContainerFacts
from scplan.model.probe import Probe
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    DELETE = "delete"
    ADOPT = "adopt"
    RELEASE = "release"  # only when an adoption is undone: the record goes, the resource stays


class Disruption(StrEnum):
    """What a change interrupts: nothing, the resource for a moment, or the resource until it is made again."""

    NONE = "none"
    BRIEF = "brief"
    RECREATE = "recreate"


class Change(NamedTuple):
    """One row of a plan.

    `before` is the live resource with what its record remembers, `after` the goal; None where there is nothing.
    `managed` is what the record will hold afterwards: the attributes that scplan answers for. `owned` is what it holds
    now. `changed` are dotted attribute paths. `effect` says in words what is interrupted, "" for nothing.
    `at_next_start` marks a change of a container that does not run: of its records, which it is started from. One of
    these that is made `at_once`, too, removes what stays in a namespace which other containers have.
    One that is `records_only` changes nothing but what scplan remembers: a policy, or an attribute that has its value.
    `put_back` are objects of others that go with the change and are restored after it, `taken_along` those that only an
    undo restores, `lost` those that nothing restores, not even an undo.
    """

    order: int
    address: Address
    action: Action
    reason: str
    before: Resource | None
    after: Resource | None
    managed: Resource | None
    owned: Resource | None
    changed: tuple[str, ...] = ()
    disruption: Disruption = Disruption.NONE
    effect: str = ""
    requires: tuple[Address, ...] = ()
    at_next_start: bool = False
    put_back: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    taken_along: tuple[str, ...] = ()
    records_only: bool = False
    at_once: bool = False

    @property
    def waits(self) -> bool:
        """True if it is made when its container starts, and not before."""
        return self.at_next_start and not self.at_once


class Operation(NamedTuple):
    """One act on the kernel: create, update, delete, or adopt (a record alone). A replacement is a delete and a create.

    `owned_before` and `owned_after` are the record on either side of it. One that is `at_next_start` changes nothing
    else, unless it acts `at_once`: its container does not run. What `was_gone` was not there any more when it was
    removed.
    """

    order: int
    address: Address
    action: Action
    before: Resource | None
    after: Resource | None
    owned_before: Resource | None
    owned_after: Resource | None
    at_next_start: bool = False
    was_gone: bool = False
    at_once: bool = False

    def inverse(self) -> Operation:
        """The operation that takes this one back."""
        back = {Action.CREATE: Action.DELETE, Action.DELETE: Action.CREATE}
        return Operation(
            order=self.order,
            address=self.address,
            action=back.get(self.action, self.action),
            before=self.after,
            after=self.before,
            owned_before=self.owned_after,
            owned_after=self.owned_before,
            at_next_start=self.at_next_start,
            was_gone=self.was_gone,
        )


class Plan(NamedTuple):
    """Changes in the order of execution, the operations that carry them out, and what was noticed on the way.

    `refreshed` are records to bring up to date although nothing changes in the kernel: an attribute that the files set
    now and that has that value already. Those that differ in what users write are changes, too (`records_only`).
    `modules` are the kernel modules that the files name, by container; `new_modules` those of containers whose records
    name others. `probes` are run after the changes, and undo them when one fails.
    """

    containers: Mapping[str, ContainerFacts]
    changes: tuple[Change, ...]
    operations: tuple[Operation, ...]
    refreshed: Mapping[Address, Resource]
    diagnostics: tuple[Diagnostic, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    new_modules: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    probes: tuple[Probe, ...] = ()

    @property
    def has_changes(self) -> bool:
        """True if there is something that people agree to: in containers, or in the records."""
        return bool(self.changes or self.new_modules)

    def summary(self) -> dict[Action, int]:
        """How many changes there are of each action; releases are only named where there are some."""
        counts: dict[Action, int] = {action: 0 for action in Action if action is not Action.RELEASE}
        for change in self.changes:
            counts[change.action] = counts.get(change.action, 0) + 1
        return counts

    def by_container(self) -> Iterator[tuple[str, list[Change]]]:
        """Containers that change, in the order of their first change, each with its changes."""
        groups: dict[str, list[Change]] = {}
        for change in self.changes:
            groups.setdefault(change.address.container, []).append(change)
        yield from groups.items()

"""Changes, and the operations that carry them out. Undo is derived: `Operation.inverse()` swaps before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from scplan.errors import Diagnostic
from scplan.model.address import Address
from scplan.model.live import ContainerFacts
from scplan.model.resource import Resource
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    from scplan.model.probe import Probe


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    DELETE = "delete"
    ADOPT = "adopt"
    RELEASE = "release"  # undo of an adoption: the record is removed, the resource stays


class Disruption(StrEnum):
    """Extent of an interruption: none, the resource for a moment, or the resource until it is made again."""

    NONE = "none"
    BRIEF = "brief"
    RECREATE = "recreate"


class Change(NamedTuple):
    """One row of a plan.

    `before` is the live resource with the former values from its record, `after` the goal; None if there is none.
    `managed` is the record after the change: the attributes that scplan manages. `owned` is the record now. `changed`
    are dotted attribute paths. `effect` describes the interruption; "" for none.

    `at_next_start` marks a change in a container that does not run: only the record changes, which is applied when the
    container starts. With `at_once` the change is also made now: it removes a resource that stayed in a namespace which
    other containers share. `records_only` marks a change without an effect in the kernel: of a policy, or of an
    attribute that has the value already.

    Objects of others that the change removes: `put_back` are restored after the change, `taken_along` only by an undo,
    `lost` never.
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
        """True if the change is made when its container starts, and not before."""
        return self.at_next_start and not self.at_once


class Operation(NamedTuple):
    """An operation on the kernel: create, update, delete; or adopt, which only writes a record.

    A replacement is a delete and a create. `owned_before` and `owned_after` are the record before and after the
    operation. With `at_next_start`, and without `at_once`, only the record changes, since the container does not run.
    `was_gone` marks a delete of a resource that did not exist any more.
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
        """The operation that undoes this one."""
        # UPDATE and ADOPT keep their action; only the sides are swapped.
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
    """Changes in the order of execution, the operations that carry them out, and diagnostics.

    `refreshed` are records to update without a change in the kernel, such as for an attribute that the configuration
    sets now and that has the value already. If attributes differ that users write, there is a change, too
    (`records_only`). `modules` are the kernel modules of the configuration, by container; `new_modules` those of
    containers whose records have other modules. `probes` are run after the changes; if a probe fails, all changes are
    undone.
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
        """True if the plan has anything that needs approval: changes, or kernel modules to record."""
        return bool(self.changes or self.new_modules)

    def summary(self) -> dict[Action, int]:
        """Number of changes by action; RELEASE is a key only if there are any."""
        counts: dict[Action, int] = {action: 0 for action in Action if action is not Action.RELEASE}
        for change in self.changes:
            counts[change.action] = counts.get(change.action, 0) + 1
        return counts

    def by_container(self) -> Iterator[tuple[str, list[Change]]]:
        """(container, its changes) in the order of each container's first change."""
        groups: dict[str, list[Change]] = {}
        for change in self.changes:
            groups.setdefault(change.address.container, []).append(change)
        yield from groups.items()

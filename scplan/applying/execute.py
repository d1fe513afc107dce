"""One operation on the kernel: capture the state that it will replace, make the operation, read live state back."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any

from scplan.errors import ScplanError
from scplan.kinds.kind import Kind, Kinds, Target
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Action, Operation
from scplan.model.comparison import differences, keep_former, mismatch_words
from scplan.model.resource import REPLACING, Resource


class Executor:
    """Makes operations in opened containers, and keeps the set of owned resources up to date."""

    def __init__(
        self,
        host: Host,
        containers: Mapping[str, Container],
        kinds: Kinds,
        owned: Mapping[Address, Resource],
        state_dir: str,
        elsewhere: Callable[[], Mapping[Address, Resource]],
        apply_id: str,
    ) -> None:
        """`elsewhere` reads the resources in the records of all other containers, on demand."""
        self.host = host
        self.containers = containers
        self.kinds = kinds
        self._state_dir = os.path.abspath(state_dir)
        self._apply_id = apply_id
        self._read_elsewhere = elsewhere
        self._owned: dict[tuple[str, str], dict[str, Resource]] = {}
        # The forked stepper inherits the fds of locks and journal, so that neither is free while a step runs: flock(2)
        # locks belong to the open file, not to a process. An older stepper lacks the journal: end it.
        host.stepper.close()
        for address, resource in owned.items():
            self._peers(address)[address.identity] = resource

    def owned(self) -> dict[Address, Resource]:
        """Resources that scplan owns now."""
        return {
            Address(container, kind, identity): resource
            for (container, kind), peers in self._owned.items()
            for identity, resource in peers.items()
        }

    def note(self, address: Address, record: Resource | None) -> None:
        """Set the record of a resource; None removes it."""
        if record is None:
            self._peers(address).pop(address.identity, None)
        else:
            self._peers(address)[address.identity] = record

    @cached_property
    def _elsewhere(self) -> Mapping[str, list[Resource]]:
        """Owned resources of all other containers, by kind; read once."""
        found: dict[str, list[Resource]] = {}
        for address, resource in self._read_elsewhere().items():
            found.setdefault(address.kind, []).append(resource)
        return found

    def _others(self, address: Address) -> list[Resource]:
        """Owned resources of the same kind at all other addresses of the host."""
        found = list(self._elsewhere.get(address.kind, ()))
        for (container, kind), peers in self._owned.items():
            if kind == address.kind:
                mine = address.identity if container == address.container else None
                found += (one for identity, one in peers.items() if identity != mine)
        return found

    def _peers(self, address: Address) -> dict[str, Resource]:
        """Owned resources of the kind in the container, by identity; changes to the dict are kept."""
        return self._owned.setdefault((address.container, address.kind), {})

    def capture(self, operation: Operation) -> Operation:
        """The operation with the state that it will replace filled in, to be journaled before it is made."""
        if operation.at_next_start:
            return operation
        kind, target = self._target(operation.address)
        before, after = kind.capture(target, operation.before, operation.after)
        owned_after = operation.owned_after
        if owned_after is not None and after is not None:
            owned_after = keep_former(owned_after, after)
        operation = operation._replace(before=before, after=after, owned_after=owned_after)
        if operation.action is not Action.DELETE:
            return operation
        return operation._replace(was_gone=_read_back(kind, target, operation) is None)

    def perform(self, operation: Operation) -> None:
        """Make the operation and read live state back.

        An operation that waits for the container's next start changes only the owned resources. Raises ScplanError if
        the kernel refuses, or if live state is not as expected afterwards.
        """
        if operation.at_next_start:
            # Part of the change may be due now: a NIC can still be in a namespace that the pod's containers share.
            waiting = self.kinds[operation.address.kind]
            with ExitStack() as stack:
                beside = partial(self._beside, operation, stack)
                waiting.change_waiting(
                    operation.before, operation.after, partial(self._others, operation.address), beside
                )
            self.note(operation.address, operation.owned_after)
            return
        kind, target = self._target(operation.address)
        # setns(2) and /proc would fail with unclear errors for a process that has ended.
        target.container.check_alive()
        match operation.action:
            case Action.CREATE:
                kind.create(target, _present(operation.after))
            case Action.UPDATE:
                kind.update(target, _present(operation.before), _present(operation.after))
            case Action.DELETE:
                kind.delete(target, _present(operation.before))
            case Action.ADOPT:
                pass
            case Action.REPLACE:
                raise ScplanError("a replacement is a deletion and a creation; this is a bug in scplan")
        # Cached links and mounts of the host may be outdated by the operation.
        self.host.forget()
        self._verify(kind, target, operation)
        self.note(operation.address, operation.owned_after)

    def _beside(self, operation: Operation, stack: ExitStack) -> Container | None:
        """Another container in the network namespace where NICs of the ended container stay; None if there is none.

        The container is open until `stack` ends.
        """
        name = operation.address.container
        for address, resource in self.owned().items():
            kind = self.kinds[address.kind]
            pid = kind.process_beside(self.host, resource) if address.container == name else 0
            if pid:
                container = stack.enter_context(Container(name, pid, 0, self.host))
                # The process may have ended before its fds were opened, and the PID may be reused: look again.
                return container if kind.stays(self.host, resource, pid) else None
        return None

    def release(self) -> None:
        """Release objects that kinds keep for the undo of this apply; only after its journal has ended."""
        release(self.kinds, self._state_dir, self._apply_id)

    def _target(self, address: Address) -> tuple[Kind[Any], Target[Any]]:
        container = self.containers[address.container]
        others = partial(self._others, address)
        target = Target(container, self.host, self._peers(address), others, self._state_dir, self._apply_id)
        return self.kinds[address.kind], target

    def _verify(self, kind: Kind[Any], target: Target[Any], operation: Operation) -> None:
        """Read live state back; raises ScplanError if it is not as the operation asked for."""
        live = _read_back(kind, target, operation)
        if operation.after is None:
            _check_gone(kind, operation, live)
            return
        # An undo may find the place taken by others since, and leaves theirs there.
        if kind.is_left_to_others(operation.after, live):
            return
        if live is None:
            how = "was to be adopted, but is gone" if operation.action is Action.ADOPT else "was made, but is not there"
            raise ScplanError(f"{operation.address} {how}")
        wrong = differences(operation.after, live)
        if wrong:
            listed = "; ".join(mismatch_words(operation.after, live, path) for path in wrong)
            raise ScplanError(f"{operation.address} is not as it should be after the change: {listed}")


def release(kinds: Kinds, state_dir: str, apply_id: str) -> None:
    """Release objects that kinds keep for the undo of an apply that has ended."""
    for kind in kinds.values():
        kind.release(state_dir, apply_id)


def release_ended(kinds: Kinds, state_dir: str, open_ids: Callable[[], Collection[str]]) -> None:
    """`release` for all applies without an open journal: an apply may be killed after its end, before its release."""
    kept = {(kind.name, apply_id) for kind in kinds.values() for apply_id in kind.kept_by(state_dir)}
    # Read the journals last: an apply has its journal before a kind keeps anything for it.
    still_open = open_ids() if kept else ()
    for name, apply_id in sorted(kept):
        if apply_id not in still_open:
            kinds[name].release(state_dir, apply_id)


def _read_back(kind: Kind[Any], target: Target[Any], operation: Operation) -> Resource | None:
    """Live resource at the address of the operation; None if absent."""
    expected = _present(operation.after if operation.after is not None else operation.before)
    wanted = {**target.peers, operation.address.identity: expected}
    live: Resource | None = kind.read(target.container, target.host, wanted).get(operation.address.identity)
    return live


def _check_gone(kind: Kind[Any], operation: Operation, live: Resource | None) -> None:
    """Raises ScplanError if the removed resource is still live; a resource from before scplan may be live again."""
    before = _present(operation.before)
    if live is None or kind.is_given_back(before, live):
        return
    # Another resource has its place: a difference in these roles can't come from a change in place.
    if any(before.attribute(path).role in REPLACING for path in differences(before, live)):
        return
    raise ScplanError(f"{operation.address} was removed without an error, but is still there")


def _present(resource: Resource | None) -> Resource:
    if resource is None:
        raise ScplanError("an operation lacks one of its sides; this is a bug in scplan")
    return resource

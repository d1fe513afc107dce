"""What containers that do not run get at their next start: desired compared with the records alone. Pure."""

from __future__ import annotations

from typing import Any

from scplan.kinds.kind import Kind
from scplan.model.address import Address
from scplan.model.change import Action
from scplan.model.comparison import at_next_start, keep_former, rewritten
from scplan.model.live import HostFacts
from scplan.model.resource import Resource, Role
from scplan.planning.draft import Draft

# What the host makes of it is looked up anew at the start: it is no change when a disk has another number by now.
_WRITTEN = frozenset({Role.MANAGED, Role.FIXED, Role.REFERENCE})


def waiting(
    kind: Kind[Any], address: Address, desired: Resource, owned: Resource | None, host: HostFacts
) -> Draft | None:
    """The change of what the container is started with; None when the record says that already."""
    if owned is None:
        return Draft(
            address=address,
            action=Action.CREATE,
            reason="in the configuration; the container does not run",
            before=None,
            after=kind.completed(address, desired, host),
            managed=at_next_start(desired),
            owned=None,
            at_next_start=True,
        )
    changed = rewritten(owned, desired, _WRITTEN)
    if not changed:
        return None
    managed = keep_former(desired, owned)
    return Draft(
        address=address,
        action=Action.UPDATE,
        reason="changed in the configuration; the container does not run",
        before=owned,
        after=managed,
        managed=managed,
        owned=owned,
        changed=changed,
        at_next_start=True,
    )


AT_ONCE = "at once: other containers are in its network namespace"


def removal_at_next_start(address: Address, owned: Resource, reason: str, *, stays: bool) -> Draft:
    """The container is started without it. All else went when it ended, unless it `stays` in a namespace of others."""
    return Draft(
        address=address,
        action=Action.DELETE,
        reason=reason,
        before=owned,
        after=None,
        managed=None,
        owned=owned,
        effect=AT_ONCE if stays else "",
        at_next_start=True,
        at_once=stays,
    )

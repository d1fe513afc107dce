"""Changes of stopped containers, which wait for the next start: desired compared with the records alone. Pure."""

from __future__ import annotations

from typing import Any

from scplan.kinds.kind import Kind
from scplan.model.address import Address
from scplan.model.change import Action
from scplan.model.comparison import at_next_start, keep_former, rewritten
from scplan.model.live import HostFacts
from scplan.model.resource import Resource, Role
from scplan.planning.draft import Draft

# Roles compared for a stopped container. Not RESOLVED: device numbers and the like are looked up again at the start,
# and a disk may have another number after each boot.
_WRITTEN = frozenset({Role.MANAGED, Role.FIXED, Role.REFERENCE})


def waiting(
    kind: Kind[Any], address: Address, desired: Resource, owned: Resource | None, host: HostFacts
) -> Draft | None:
    """Change of the resource that the next start attaches; None if the record equals `desired` already."""
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
    """Removal of a resource from the record of a stopped container, whose next start goes without the resource.

    The live resource went when the container ended, unless it `stays` in a namespace that other containers share: then
    the removal acts at once.
    """
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

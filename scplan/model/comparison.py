"""Comparing and combining records: differences between desired and live, the goal of an update, former values."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Container, Iterable, Mapping
from operator import itemgetter
from typing import Any, TypeVar

from scplan.model.resource import COMPARED, CONFIGURABLE, REMEMBERED, Attribute, Attributes, Resource, Role
from scplan.startup.digest import sha256_hex

R = TypeVar("R", bound=Attributes)


def differences(desired: Resource, live: Resource) -> tuple[str, ...]:
    """Dotted paths of the managed attributes in which `live` differs from `desired`.

    Attributes that are unset in `desired` are not managed. A `many` attribute differs if `live` lacks an element of
    it. If a RESOLVED attribute is unset, because the host does not have the object, its REFERENCE is compared instead.
    """
    found: list[str] = []
    _find_differences(desired, live, "", found)
    return tuple(found)


def _find_differences(desired: Attributes, live: Attributes | None, prefix: str, found: list[str]) -> None:
    mine, theirs = desired.__dict__, live.__dict__ if live is not None else {}
    for name, attribute in desired.layout.compared:
        wanted = mine[name]
        if wanted is None:
            continue
        there = theirs.get(name)
        if wanted == there:
            continue
        if attribute.record is not None:
            _find_differences(wanted, there, f"{prefix}{name}.", found)
        elif not attribute.many or not set(wanted) <= set(there or ()):
            found.append(prefix + name)
    for reference, resolved in desired.layout.references:
        if mine[resolved] is None and mine[reference] != theirs.get(reference):
            found.append(prefix + reference)


def is_recorded_as(desired: Resource, owned: Resource) -> bool:
    """True if the record `owned` has the desired values; REMEMBERED and CARRIED attributes are ignored."""
    recorded = desired.layout.recorded
    return bool(recorded(desired.__dict__) == recorded(owned.__dict__))


def account_of(resources: Iterable[tuple[str, str, Resource]]) -> str:
    """Digest of a container's resources, each (kind, identity, resource): equal if all of them are `is_recorded_as`.

    One process compares its desired resources with the records that another process has read.
    """
    listed = sorted(resources, key=itemgetter(0, 1))
    # marshal version 0: later versions encode a string differently if it is interned or occurs again.
    return sha256_hex(marshal.dumps([(kind, identity, _recorded(one)) for kind, identity, one in listed], 0))


def _recorded(one: Attributes) -> tuple[Any, ...]:
    """The values of `Layout.recorded`, with nested records as tuples."""
    values: tuple[Any, ...] = one.layout.recorded(one.__dict__)
    if not one.layout.has_records:
        return values
    return tuple(_recorded(value) if isinstance(value, Attributes) else value for value in values)


def mismatch_words(expected: Resource, live: Resource, path: str) -> str:
    """The difference at a dotted path, for an error: `mtu is 1500, not 1400`."""
    attribute = expected.attribute(path)
    if attribute.type is not None and attribute.type.opaque:
        named = next((one.name for one in expected.attributes() if one.role is Role.REFERENCE), path)
        return f"{named} is another file than it should be"
    return f"{path} is {attribute.show(live.get(path))}, not {attribute.show(expected.get(path))}"


def rewritten(one: Resource, other: Resource, roles: Container[Role]) -> tuple[str, ...]:
    """Dotted paths of the attributes of these roles in which two records differ. The order of lists is ignored."""
    paths = dict.fromkeys(
        path for side in (other, one) for path, attribute, _ in side.leaves() if attribute.role in roles
    )
    return tuple(path for path in paths if not _is_same(other.get(path), one.get(path)))


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) or isinstance(other, tuple):
        return set(one or ()) == set(other or ())
    return bool(one == other)


def surplus(owned: Resource, desired: Resource, live: Resource) -> tuple[str, ...]:
    """Dotted paths of `many` attributes with live elements that scplan set and that are no longer desired."""
    return tuple(
        path
        for path, attribute, value in owned.leaves()
        if attribute.many
        and attribute.role in COMPARED
        and attribute.role not in REMEMBERED
        and value
        and set(live.get(path) or ()) & (set(value) - set(desired.get(path) or ()))
    )


def withdrawn(owned: Resource, desired: Resource) -> tuple[str, ...]:
    """Dotted paths of the attributes that scplan had set and that are no longer desired."""
    return tuple(
        path
        for path, attribute, value in owned.leaves()
        if value is not None and not attribute.many and attribute.role is Role.MANAGED and desired.get(path) is None
    )


def with_values(resource: R, values: Mapping[str, Any]) -> R:
    """A copy with these values at dotted paths. Unset nested records on a path are created."""
    changes: dict[str, Any] = {}
    for attribute in resource.attributes():
        prefix = f"{attribute.name}."
        inner = {path.removeprefix(prefix): value for path, value in values.items() if path.startswith(prefix)}
        if attribute.record is not None and inner:
            changes[attribute.name] = with_values(getattr(resource, attribute.name) or attribute.record(), inner)
        elif attribute.name in values:
            changes[attribute.name] = values[attribute.name]
    return resource.replace(**changes) if changes else resource


def goal(desired: Resource, live: Resource, owned: Resource | None) -> Resource:
    """The resource that the kernel should have after an update: `live`, overlaid with the set attributes of `desired`.

    Elements of `many` attributes that scplan owned and that are no longer desired are removed; those of others stay.
    """
    dropped = {
        path: set(value) for path, attribute, value in (owned.leaves() if owned else ()) if attribute.many and value
    }
    changed = differences(desired, live)

    def leaf(attribute: Attribute, wanted: Any, there: Any) -> Any:
        if attribute.role in (Role.POLICY, Role.REFERENCE, Role.IDENTITY, Role.ORIGIN):
            return wanted
        if attribute.role in (Role.FORMER, Role.CARRIED):
            return None
        if attribute.role is Role.PROMISED:
            return wanted
        if attribute.many:
            mine = dropped.get(attribute.name, set())
            kept = tuple(item for item in there or () if item not in mine or item in (wanted or ()))
            return kept + tuple(item for item in wanted or () if item not in kept)
        if wanted is None and any(path in changed for path in attribute.follows):
            return None
        return there if wanted is None else wanted

    return with_promises(_combine(desired, live, leaf), owned)


def in_order_of(resource: R, former: Attributes | None) -> R:
    """`resource`, with the elements of its `many` attributes in the order of `former`; elements not in it come last."""
    if former is None:
        return resource
    changes = {}
    for attribute in resource.attributes():
        items, before = getattr(resource, attribute.name), getattr(former, attribute.name) or ()
        if attribute.many and attribute.role in COMPARED and items:
            turns = {item: turn for turn, item in enumerate(before)}
            changes[attribute.name] = tuple(sorted(items, key=lambda item: turns.get(item, len(turns))))
    return resource.replace(**changes)


def keep_former(resource: Resource, owned: Resource | None) -> Resource:
    """`resource`, with the REMEMBERED attributes of its record: former and promised values."""
    if owned is None:
        return resource
    kept = _combine(resource, owned, lambda attribute, this, record: record if attribute.role in REMEMBERED else this)
    void = {one.name: None for one in kept.layout.promised if one.unless and getattr(kept, one.unless) is not None}
    return kept.replace(**void) if void else kept


def with_promises(resource: Resource, owned: Resource | None) -> Resource:
    """`keep_former`, except that promised values of `resource` win over those of its record.

    An unset promised value wins, too, if an attribute that it follows is no longer as recorded.
    """
    if owned is None:
        return resource
    own = {
        one.name: getattr(resource, one.name)
        for one in resource.layout.promised
        if getattr(resource, one.name) is not None or any(resource.get(path) != owned.get(path) for path in one.follows)
    }
    kept = keep_former(resource, owned)
    return kept.replace(**own) if own else kept


def promises_more(desired: Resource, owned: Resource) -> bool:
    """True if `desired` sets a promised value that differs from the one in the record `owned`."""
    promised = desired.layout.promised
    return bool(promised) and any(
        getattr(desired, one.name) not in (None, getattr(owned, one.name)) for one in promised
    )


def with_promises_of(resource: R, record: Attributes) -> R:
    """`resource`, with the promised values of a record instead of its own."""
    return _combine(resource, record, lambda attribute, this, that: that if attribute.role is Role.PROMISED else this)


def as_configured(record: R) -> R:
    """The record without the attributes that users can't write, such as those that were resolved on the host."""
    return _combine(record, None, lambda attribute, this, _: this if attribute.role in CONFIGURABLE else None)


def at_next_start(record: R) -> R:
    """The record for after its container has ended: without REMEMBERED attributes, except those that are `lasting`."""
    return _combine(
        record,
        None,
        lambda attribute, this, _: this if attribute.role not in REMEMBERED or attribute.lasting else None,
    )


def without_former(resource: R) -> R:
    """`resource` without REMEMBERED attributes."""
    return _combine(resource, None, lambda attribute, this, _: None if attribute.role in REMEMBERED else this)


def laid_over(one: R, other: R, roles: Container[Role]) -> R:
    """`one`, overlaid with the set attributes of `other` that have one of these roles."""
    return _combine(
        one, other, lambda attribute, this, that: that if attribute.role in roles and that is not None else this
    )


def as_recorded(live: R, owned: Resource | None) -> R:
    """`live`, with the policy and the former values of its record: all that is needed to recreate the resource."""
    if owned is None:
        return live
    roles = (Role.FORMER, Role.POLICY, Role.ORIGIN)
    return _combine(live, owned, lambda attribute, this, record: record if attribute.role in roles else this)


def _combine(one: R, other: Attributes | None, leaf: Callable[[Attribute, Any, Any], Any]) -> R:
    """A record of the class of `one`, whose attributes `leaf(attribute, value of one, value of other)` returns."""
    values: dict[str, Any] = {}
    for attribute in one.attributes():
        mine = getattr(one, attribute.name)
        theirs = getattr(other, attribute.name) if other is not None else None
        if attribute.record is None:
            values[attribute.name] = leaf(attribute, mine, theirs)
        elif mine is None and theirs is None:
            values[attribute.name] = None
        else:
            base = mine if mine is not None else attribute.record()
            values[attribute.name] = _combine(base, theirs, leaf)
    return type(one)(**values)

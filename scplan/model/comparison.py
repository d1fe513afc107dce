"""Records compared and combined: what differs from what is desired, what is given back, and what is to be reached."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Container, Iterable, Mapping
from operator import itemgetter
from typing import Any, TypeVar

from scplan.model.resource import COMPARED, CONFIGURABLE, REMEMBERED, Attribute, Attributes, Resource, Role
from scplan.startup.digest import sha256_hex

R = TypeVar("R", bound=Attributes)


def differences(desired: Resource, live: Resource) -> tuple[str, ...]:
    """Dotted paths of the managed attributes in which `live` is not as desired.

    Unset attributes of `desired` are not managed; of a `many` attribute only the elements that are missing count. What
    was not found on the host is compared by the path that names it.
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
    """Whether the record says what is desired, apart from what it remembers of the time before scplan."""
    recorded = desired.layout.recorded
    return bool(recorded(desired.__dict__) == recorded(owned.__dict__))


def account_of(resources: Iterable[tuple[str, str, Resource]]) -> str:
    """What (kind, identity, resource) of a container say, as a digest: the same where all of them `is_recorded_as`.

    For processes that compare what each of them knows.
    """
    listed = sorted(resources, key=itemgetter(0, 1))
    # Of version 0: later ones write a text in another way when it is interned, or when it was written before.
    return sha256_hex(marshal.dumps([(kind, identity, _recorded(one)) for kind, identity, one in listed], 0))


def _recorded(one: Attributes) -> tuple[Any, ...]:
    """The values of `recorded` that are plain all through."""
    values: tuple[Any, ...] = one.layout.recorded(one.__dict__)
    if not one.layout.has_records:
        return values
    return tuple(_recorded(value) if isinstance(value, Attributes) else value for value in values)


def mismatch_words(expected: Resource, live: Resource, path: str) -> str:
    """`mtu is 1500, not 1400`: the difference at a dotted path, for an error."""
    attribute = expected.attribute(path)
    if attribute.type is not None and attribute.type.opaque:
        named = next((one.name for one in expected.attributes() if one.role is Role.REFERENCE), path)
        return f"{named} is another file than it should be"
    return f"{path} is {attribute.show(live.get(path))}, not {attribute.show(expected.get(path))}"


def rewritten(one: Resource, other: Resource, roles: Container[Role]) -> tuple[str, ...]:
    """Dotted paths of the attributes of these roles in which two records differ, lists in any order."""
    paths = dict.fromkeys(
        path for side in (other, one) for path, attribute, _ in side.leaves() if attribute.role in roles
    )
    return tuple(path for path in paths if not _is_same(other.get(path), one.get(path)))


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) or isinstance(other, tuple):
        return set(one or ()) == set(other or ())
    return bool(one == other)


def surplus(owned: Resource, desired: Resource, live: Resource) -> tuple[str, ...]:
    """Dotted paths of `many` attributes that still hold elements which scplan set and which left the files."""
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
    """Dotted paths of the attributes that scplan had set and the files set no more."""
    return tuple(
        path
        for path, attribute, value in owned.leaves()
        if value is not None and not attribute.many and attribute.role is Role.MANAGED and desired.get(path) is None
    )


def with_values(resource: R, values: Mapping[str, Any]) -> R:
    """A copy with the values at dotted paths; records on the way are made where they are unset."""
    changes: dict[str, Any] = {}
    for attribute in resource.attributes():
        prefix = f"{attribute.name}."
        inner = {path.removeprefix(prefix): value for path, value in values.items() if path.startswith(prefix)}
        if attribute.record is not None and inner:
            changes[attribute.name] = with_values(getattr(resource, attribute.name) or attribute.record(), inner)
        elif attribute.name in values:
            changes[attribute.name] = values[attribute.name]
    return resource.but(**changes) if changes else resource


def goal(desired: Resource, live: Resource, owned: Resource | None) -> Resource:
    """What the kernel should hold after an update: live, with what is desired laid over it.

    Elements of `many` attributes that scplan owned and the files dropped are taken out; others' stay.
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
    """`resource`, with the elements of its `many` attributes that `former` has, too, in the order which they had there.

    Others come after them.
    """
    if former is None:
        return resource
    changes = {}
    for attribute in resource.attributes():
        items, before = getattr(resource, attribute.name), getattr(former, attribute.name) or ()
        if attribute.many and attribute.role in COMPARED and items:
            turns = {item: turn for turn, item in enumerate(before)}
            changes[attribute.name] = tuple(sorted(items, key=lambda item: turns.get(item, len(turns))))
    return resource.but(**changes)


def keep_former(resource: Resource, owned: Resource | None) -> Resource:
    """`resource`, with what scplan remembers in its record: the time before it, and the values that it promised."""
    if owned is None:
        return resource
    kept = _combine(resource, owned, lambda attribute, this, record: record if attribute.role in REMEMBERED else this)
    void = {one.name: None for one in kept.layout.promised if one.unless and getattr(kept, one.unless) is not None}
    return kept.but(**void) if void else kept


def with_promises(resource: Resource, owned: Resource | None) -> Resource:
    """`keep_former`, but a promise of `resource` itself counts more than the one of its record.

    So does that it has none, where it follows an attribute that is no longer as recorded.
    """
    if owned is None:
        return resource
    own = {
        one.name: getattr(resource, one.name)
        for one in resource.layout.promised
        if getattr(resource, one.name) is not None or any(resource.get(path) != owned.get(path) for path in one.follows)
    }
    kept = keep_former(resource, owned)
    return kept.but(**own) if own else kept


def promises_more(desired: Resource, owned: Resource) -> bool:
    """True if `desired` promises something else than its record."""
    promised = desired.layout.promised
    return bool(promised) and any(
        getattr(desired, one.name) not in (None, getattr(owned, one.name)) for one in promised
    )


def with_promises_of(resource: R, record: Attributes) -> R:
    """`resource`, with the promised values of a record, and no others."""
    return _combine(resource, record, lambda attribute, this, that: that if attribute.role is Role.PROMISED else this)


def as_configured(record: R) -> R:
    """What users wrote of it, without what was found out on the host."""
    return _combine(record, None, lambda attribute, this, _: this if attribute.role in CONFIGURABLE else None)


def at_next_start(record: R) -> R:
    """A record when its container has ended: what is remembered of the time before scplan is over, unless it lasts."""
    return _combine(
        record,
        None,
        lambda attribute, this, _: this if attribute.role not in REMEMBERED or attribute.lasting else None,
    )


def without_former(resource: R) -> R:
    """`resource` as if scplan had not seen yet what was there before it."""
    return _combine(resource, None, lambda attribute, this, _: None if attribute.role in REMEMBERED else this)


def laid_over(one: R, other: R, roles: Container[Role]) -> R:
    """`one`, with the attributes of these roles that `other` sets."""
    return _combine(
        one, other, lambda attribute, this, that: that if attribute.role in roles and that is not None else this
    )


def as_recorded(live: R, owned: Resource | None) -> R:
    """`live`, with the policy and the former values of its record: all that is needed to make it again."""
    if owned is None:
        return live
    roles = (Role.FORMER, Role.POLICY, Role.ORIGIN)
    return _combine(live, owned, lambda attribute, this, record: record if attribute.role in roles else this)


def _combine(one: R, other: Attributes | None, leaf: Callable[[Attribute, Any, Any], Any]) -> R:
    """A record of the attributes that `leaf` picks from two."""
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

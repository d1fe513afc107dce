"""What a resource is: a frozen record whose attributes say how each is written, compared, kept and given back."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from enum import StrEnum
from operator import itemgetter
from typing import Any, ClassVar, NoReturn, Self, TypeVar, dataclass_transform

from scplan.digest import sha256_hex

R = TypeVar("R", bound="Attributes")
Stored = str | int | bool
"""A normalised value, as records keep it; attributes that are `many` hold a tuple of these."""


class Role(StrEnum):
    """How an attribute takes part in configuration, comparison and removal."""

    IDENTITY = "identity"  # part of the address
    MANAGED = "managed"  # compared with the kernel when it is set; changes in place
    FIXED = "fixed"  # the same, but changing it means replacing the resource
    POLICY = "policy"  # steers scplan; never compared with the kernel
    REFERENCE = "reference"  # names what the kernel keeps under an identity of its own (RESOLVED); compared without it
    RESOLVED = "resolved"  # found out on the host, not written by users; compared, and a difference replaces
    FORMER = "former"  # what was there before scplan, remembered so that it can be given back; never compared
    ORIGIN = "origin"  # the entry of the files that it stands for, where that is another's; never compared
    CARRIED = "carried"  # what an operation takes along, captured just before it for its undo; records don't keep it


CONFIGURABLE = frozenset({Role.IDENTITY, Role.MANAGED, Role.FIXED, Role.POLICY, Role.REFERENCE})
COMPARED = frozenset({Role.MANAGED, Role.FIXED, Role.RESOLVED})
_NAMING = (Role.REFERENCE, Role.RESOLVED)
REPLACING = frozenset({Role.FIXED, Role.RESOLVED, Role.REFERENCE})


class ValueType:
    """How a value is written in YAML, kept in records and shown to people.

    `parse` takes the text of a YAML scalar and returns the normalised value, or raises ValueError with what is wrong
    and what was expected. `check` raises ValueError for a stored text that is none of the type: what was read from the
    kernel need not be what users may write. `schema` is the JSON Schema of the written form. A value that `speaks` is
    understood without the name of its attribute: `rwm`.
    """

    def __init__(
        self,
        parse: Callable[[str], Stored],
        *,
        stored: type,
        schema: Mapping[str, object],
        show: Callable[[Any], str] = str,
        speaks: bool = False,
        check: Callable[[str], object] = str,
    ) -> None:
        self.parse = parse
        self.check = check
        self.stored = stored
        self.schema = schema
        self.show = show
        self.speaks = speaks


class Attribute:
    """One attribute of a record: its documentation and rules. `name` is set when the record class is read."""

    def __init__(
        self,
        doc: str,
        *,
        type: ValueType | None,
        role: Role,
        default: Any = None,
        required: bool = False,
        many: bool = False,
        on_unset: Stored | tuple[Stored, ...] | None = None,
        aliases: tuple[str, ...] = (),
        record: type[Attributes] | None = None,
        examples: tuple[object, ...] = (),
        lasting: bool = False,
        follows: tuple[str, ...] = (),
    ) -> None:
        self.name = ""
        self.doc = doc
        self.type = type
        self.role = role
        self.default = default
        self.required = required
        self.many = many
        self.on_unset = on_unset
        self.aliases = aliases
        self.record = record
        self.examples = examples
        self.lasting = lasting
        self.follows = follows

    def show(self, value: object) -> str:
        """The value for people: `10 MiB/s`, `10.0.0.5/24, fd00::5/64`."""
        if value is None:
            return "unset"
        if isinstance(value, tuple):
            return ", ".join(self.show(item) for item in value) or "none"
        if isinstance(value, bool):
            return "yes" if value else "no"
        return (self.type.show(value) if self.type else str(value)) or "none"


def attr(
    doc: str,
    type: ValueType,
    *,
    role: Role = Role.MANAGED,
    default: Any = None,
    required: bool = False,
    many: bool = False,
    on_unset: Stored | tuple[Stored, ...] | None = None,
    aliases: tuple[str, ...] = (),
    examples: tuple[object, ...] = (),
    lasting: bool = False,
    follows: tuple[str, ...] = (),
) -> Any:
    """An attribute of a record.

    `many` makes it a tuple whose elements are managed one by one: what others added to it stays. `on_unset` is the
    value that it goes back to when it leaves the files after scplan had set it; without one, the value that a creation
    would give it, and where that gives none, its live value. A `required` attribute must be written by the user. A
    FORMER one that is `lasting` stays true when the container starts again. One that `follows` others and is unset is
    found anew, as for a creation, when one of them changes.
    """
    return Attribute(
        doc,
        type=type,
        role=role,
        default=default,
        required=required,
        many=many,
        on_unset=on_unset,
        aliases=aliases,
        examples=examples,
        lasting=lasting,
        follows=follows,
    )


def nested(doc: str, record: type[Attributes]) -> Any:
    """An attribute that is a record of its own (`io:` of a device); None when it is not written."""
    return Attribute(doc, type=None, role=Role.MANAGED, record=record)


class Layout:
    """What a record class declares, gathered once.

    `required` names the attributes without a default. `plain` holds, by name, the types of those that are neither
    records nor lists; bool is no int here. `compared` are those that are compared with the kernel, and `recorded` picks
    the values of all but those that remember the time before scplan; `has_records` tells whether some of the values are
    records themselves. `known_forms` is the codec's.
    """

    __slots__ = (
        "attributes",
        "by_name",
        "compared",
        "defaults",
        "has_records",
        "known_forms",
        "plain",
        "recorded",
        "references",
        "required",
    )

    def __init__(self, cls: type) -> None:
        self.by_name = {name: one for name, one in vars(cls).items() if isinstance(one, Attribute)}
        for name, one in self.by_name.items():
            one.name = name
            # A record's own values are all there is: one that it lacks is an error, and no description of it.
            delattr(cls, name)
        self.attributes = tuple(self.by_name.values())
        self.defaults = {one.name: one.default for one in self.attributes if not one.required}
        self.required = [one.name for one in self.attributes if one.required]
        self.plain = {one.name: one.type.stored for one in self.attributes if one.type is not None and not one.many}
        self.compared = tuple((one.name, one) for one in self.attributes if one.role in COMPARED)
        recorded = [one.name for one in self.attributes if one.role not in (Role.FORMER, Role.CARRIED)]
        self.recorded: Callable[[Mapping[str, Any]], Any] = itemgetter(*recorded) if recorded else tuple
        names = {role: [one.name for one in self.attributes if one.role is role] for role in _NAMING}
        # One that is found out tells for all of them: they are found out together.
        self.references = [(one, names[Role.RESOLVED][0]) for one in names[Role.REFERENCE]]
        self.has_records = any(one.record is not None for one in self.attributes)
        self.known_forms: dict[object, tuple[str, ...]] = {}


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Attributes:
    """A frozen record made of attributes; nested ones and resources alike.

    Its subclasses read as dataclasses do. They have the methods of this class: to import what would generate some for
    each takes longer than the start of a container's hook may.
    """

    layout: ClassVar[Layout]

    def __init_subclass__(cls) -> None:
        cls.layout = Layout(cls)

    def __init__(self, **values: Any) -> None:
        self._fill(self.layout.defaults, values)

    def _fill(self, base: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        # Past the frozen fields, all at once: one by one takes five times as long, and a plan makes many thousands.
        mine, layout = self.__dict__, self.layout
        mine.update(base)
        mine.update(values)
        if len(mine) != len(layout.attributes):
            wrong = mine.keys() ^ layout.by_name.keys()
            raise TypeError(f"{type(self).__name__}: unknown or missing attributes: {', '.join(sorted(wrong))}")

    @classmethod
    def of_form(cls, values: Mapping[str, Any], others: Mapping[str, Any]) -> Self:
        """A record of values that are known to be all of those which it needs; `others` win over them."""
        made = object.__new__(cls)
        mine = made.__dict__
        mine.update(cls.layout.defaults)
        mine.update(values)
        mine.update(others)
        return made

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} can't be set: records don't change")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items() if value is not None)
        return f"{type(self).__name__}({values})"

    @classmethod
    def attributes(cls) -> tuple[Attribute, ...]:
        """The attributes of the record, in the order in which they are declared."""
        return cls.layout.attributes

    @classmethod
    def attribute(cls, path: str) -> Attribute:
        """The attribute that a dotted path names: `io.read_bps`."""
        first, _, rest = path.partition(".")
        for attribute in cls.attributes():
            if attribute.name == first:
                return attribute.record.attribute(rest) if attribute.record and rest else attribute
        raise KeyError(f"{cls.__name__} has no attribute {path}; this is a bug in scplan")

    @classmethod
    def paths(cls) -> Iterator[str]:
        """The dotted paths of all attributes that are no records."""
        for attribute in cls.attributes():
            if attribute.record is None:
                yield attribute.name
            else:
                yield from (f"{attribute.name}.{path}" for path in attribute.record.paths())

    def leaves(self) -> Iterator[tuple[str, Attribute, Any]]:
        """(dotted path, attribute, value) of every attribute, nested ones included; unset ones as None."""
        for attribute in self.attributes():
            value = getattr(self, attribute.name)
            if attribute.record is None:
                yield attribute.name, attribute, value
            elif value is not None:
                for path, leaf, inner in value.leaves():
                    yield f"{attribute.name}.{path}", leaf, inner

    def get(self, path: str) -> Any:
        """The value at a dotted path; None where a record on the way is unset."""
        value: Any = self
        for name in path.split("."):
            value = getattr(value, name) if value is not None else None
        return value

    def shown(self, path: str, value: object) -> str:
        """A value of the attribute at a dotted path, for people; records override it where that takes more."""
        return self.attribute(path).show(value)

    def but(self, **changes: Any) -> Self:
        """A copy with some attributes changed."""
        copy = object.__new__(type(self))
        copy._fill(self.__dict__, changes)
        return copy

    @classmethod
    def default(cls, name: str) -> Any:
        """What the attribute is when it is not written; None when it has no default."""
        return cls.layout.defaults.get(name)


class Resource(Attributes):
    """One thing that is plugged into a container. Each kind has a record of its own."""


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


def surplus(owned: Resource, desired: Resource, live: Resource) -> tuple[str, ...]:
    """Dotted paths of `many` attributes that still hold elements which scplan set and which left the files."""
    return tuple(
        path
        for path, attribute, value in owned.leaves()
        if attribute.many
        and attribute.role in COMPARED
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
        if attribute.many:
            mine = dropped.get(attribute.name, set())
            kept = tuple(item for item in there or () if item not in mine or item in (wanted or ()))
            return kept + tuple(item for item in wanted or () if item not in kept)
        if wanted is None and any(path in changed for path in attribute.follows):
            return None
        return there if wanted is None else wanted

    return keep_former(_combine(desired, live, leaf), owned)


def keep_former(resource: Resource, owned: Resource | None) -> Resource:
    """`resource`, with what scplan remembers of the time before it."""
    if owned is None:
        return resource
    return _combine(resource, owned, lambda attribute, this, record: record if attribute.role is Role.FORMER else this)


def as_configured(record: R) -> R:
    """What users wrote of it, without what was found out on the host."""
    return _combine(record, None, lambda attribute, this, _: this if attribute.role in CONFIGURABLE else None)


def brought_by(record: Resource) -> str | None:
    """The identity of the resource for whose entry it is there: for a partition, its disk; None: it has its own."""
    return next((getattr(record, one.name) for one in record.attributes() if one.role is Role.ORIGIN), None)


def at_next_start(record: R) -> R:
    """A record when its container has ended: what is remembered of the time before scplan is over, unless it lasts."""
    return _combine(
        record,
        None,
        lambda attribute, this, _: this if attribute.role is not Role.FORMER or attribute.lasting else None,
    )


def without_former(resource: R) -> R:
    """`resource` as if scplan had not seen yet what was there before it."""
    return _combine(resource, None, lambda attribute, this, _: None if attribute.role is Role.FORMER else this)


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

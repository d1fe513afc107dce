"""What a resource is: a frozen record whose attributes say how each is written, compared, kept and given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from operator import itemgetter
from typing import Any, ClassVar, NoReturn, Self, dataclass_transform

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
    PROMISED = "promised"  # set where the files say nothing; remembered as FORMER is, compared, changed in place
    FORMER = "former"  # what was there before scplan, remembered so that it can be given back; never compared
    ORIGIN = "origin"  # the entry of the files that it stands for, where that is another's; never compared
    CARRIED = "carried"  # what an operation takes along, captured just before it for its undo; records don't keep it


CONFIGURABLE = frozenset({Role.IDENTITY, Role.MANAGED, Role.FIXED, Role.POLICY, Role.REFERENCE})
COMPARED = frozenset({Role.MANAGED, Role.FIXED, Role.RESOLVED, Role.PROMISED})
REMEMBERED = frozenset({Role.PROMISED, Role.FORMER})
RECORDED = frozenset(Role) - {Role.CARRIED}
_NAMING = (Role.REFERENCE, Role.RESOLVED)
REPLACING = frozenset({Role.FIXED, Role.RESOLVED, Role.REFERENCE})


class ValueType:
    """How a value is written in YAML, kept in records and shown to people.

    `parse` takes the text of a YAML scalar and returns the normalised value, or raises ValueError with what is wrong
    and what was expected. `check` raises ValueError for a stored text that is none of the type: what was read from the
    kernel need not be what users may write. `schema` is the JSON Schema of the written form. A value that `speaks` is
    understood without the name of its attribute: `rwm`. Of two that are `opaque` people only need to know that they
    differ: they are different files.
    """

    def __init__(
        self,
        parse: Callable[[str], Stored],
        *,
        stored: type,
        schema: Mapping[str, object],
        show: Callable[[Any], str] = str,
        speaks: bool = False,
        opaque: bool = False,
        check: Callable[[str], object] = str,
    ) -> None:
        self.parse = parse
        self.check = check
        self.stored = stored
        self.schema = schema
        self.show = show
        self.speaks = speaks
        self.opaque = opaque


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
        unless: str = "",
        of_others: bool = False,
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
        self.unless = unless
        self.of_others = of_others

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
    unless: str = "",
    of_others: bool = False,
) -> Any:
    """An attribute of a record.

    `many` makes it a tuple whose elements are managed one by one: what others added to it stays. `on_unset` is the
    value that it goes back to when it leaves the files after scplan had set it; without one, the value that a creation
    would give it, and where that gives none, its live value. A `required` attribute must be written by the user. A
    FORMER one that is `lasting` stays true when the container starts again; one that is `of_others` is about what
    others made, and does not show that scplan made or changed it. One that `follows` others and is unset is found
    anew, as for a creation, when one of them changes. A PROMISED one is not promised where the attribute `unless`
    is set: that says the same.
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
        unless=unless,
        of_others=of_others,
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
        "promised",
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
        self.promised = tuple(one for one in self.attributes if one.role is Role.PROMISED)
        recorded = [one.name for one in self.attributes if one.role not in (*REMEMBERED, Role.CARRIED)]
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

    def remark(self) -> str:
        """A fact about the live resource that is no difference from its entry, but that its user should know."""
        return ""

    @property
    def is_lent(self) -> bool:
        """True for a record of a thing of the host that a container has, or its pod after it, until it is returned."""
        return False


def brought_by(record: Resource) -> str | None:
    """The identity of the resource for whose entry it is there: for a partition, its disk; None: it has its own."""
    return next((getattr(record, one.name) for one in record.attributes() if one.role is Role.ORIGIN), None)

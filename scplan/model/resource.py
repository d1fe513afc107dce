"""Records: frozen values whose attributes declare how each is written, compared, recorded and restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from operator import itemgetter
from typing import Any, ClassVar, NoReturn, Self, dataclass_transform

Stored = str | int | bool
"""A normalised value, as records keep it; attributes that are `many` hold a tuple of these."""


class Role(StrEnum):
    """Role of an attribute in configuration, comparison and removal."""

    IDENTITY = "identity"  # part of the address
    MANAGED = "managed"  # compared with the kernel if it is set; changed in place
    FIXED = "fixed"  # compared if it is set; a difference replaces the resource
    POLICY = "policy"  # controls scplan; never compared with the kernel
    REFERENCE = "reference"  # names an object that the kernel knows by its RESOLVED identity; compared if that is unset
    RESOLVED = "resolved"  # looked up on the host, not written by users; compared, a difference replaces the resource
    PROMISED = "promised"  # chosen by scplan if the configuration does not set it; recorded, compared, changed in place
    FORMER = "former"  # value before scplan, recorded so that it can be restored; never compared
    ORIGIN = "origin"  # the entry for which the resource exists, if that is another resource's; never compared
    CARRIED = "carried"  # removed along with the resource, captured just before for the undo; not in records


CONFIGURABLE = frozenset({Role.IDENTITY, Role.MANAGED, Role.FIXED, Role.POLICY, Role.REFERENCE})
COMPARED = frozenset({Role.MANAGED, Role.FIXED, Role.RESOLVED, Role.PROMISED})
REMEMBERED = frozenset({Role.PROMISED, Role.FORMER})
RECORDED = frozenset(Role) - {Role.CARRIED}
_NAMING = (Role.REFERENCE, Role.RESOLVED)
REPLACING = frozenset({Role.FIXED, Role.RESOLVED, Role.REFERENCE})


class ValueType:
    """A type of values: how they are written in YAML, kept in records and shown to people.

    `parse` returns the normalised value of a YAML scalar's text, or raises ValueError with what is wrong and what is
    expected. `check` raises ValueError for a stored text that is not of the type; it accepts values from the kernel,
    which users may not be allowed to write. `schema` is the JSON Schema of the written form. `shown_without_name`:
    values are shown without the attribute's name, because they are clear without it (`rwm`). `opaque`: a difference is
    shown without the values, as "another file".
    """

    def __init__(
        self,
        parse: Callable[[str], Stored],
        *,
        stored: type,
        schema: Mapping[str, object],
        show: Callable[[Any], str] = str,
        shown_without_name: bool = False,
        opaque: bool = False,
        check: Callable[[str], object] = str,
    ) -> None:
        self.parse = parse
        self.check = check
        self.stored = stored
        self.schema = schema
        self.show = show
        self.shown_without_name = shown_without_name
        self.opaque = opaque


class Attribute:
    """Declaration of an attribute: its documentation and rules. `name` is set when the record class is created."""

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
        """The value as text for people: `10 MiB/s`, `10.0.0.5/24, fd00::5/64`."""
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
    """Declare an attribute of a record.

    - `required`: users must write it.
    - `many`: its value is a tuple whose elements are managed one by one; elements that others add stay.
    - `on_unset`: value to set when the attribute is removed from the configuration after scplan had set it. Without
      `on_unset` it gets the value that a creation would give it; if a creation gives none, it keeps its live value.
    - `follows`: attributes on which this one depends. If one of them changes and this one is unset, its value is
      determined again, as at a creation.
    - `lasting`: a FORMER value that stays valid when the container starts again.
    - `of_others`: a FORMER value about something that others made; it is no sign that scplan made or changed it.
    - `unless`: a PROMISED value is dropped if the attribute of this name is set, which has the same meaning.
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
    """Declare an attribute whose value is a nested record (`io:` of a device); None if it is not written."""
    return Attribute(doc, type=None, role=Role.MANAGED, record=record)


class Layout:
    """Attributes of a record class, in the groupings that comparison and the codec need. Made once for each class.

    `required` are the names of required attributes. `plain` are the stored types, by name, of attributes that are
    neither records nor lists; bool and int are different types here. `compared` are (name, attribute) of those that are
    compared with the kernel. `recorded(values)` is a tuple of the values that are neither REMEMBERED nor CARRIED.
    `has_records` is True if an attribute is a nested record. `known_forms` belongs to the codec.
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
            # Otherwise a record that lacks a value would return the Attribute from its class, instead of an error.
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
        # The first RESOLVED attribute stands for all of them: they are looked up together.
        self.references = [(one, names[Role.RESOLVED][0]) for one in names[Role.REFERENCE]]
        self.has_records = any(one.record is not None for one in self.attributes)
        self.known_forms: dict[object, tuple[str, ...]] = {}


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Attributes:
    """Base class of frozen records: resources and nested records.

    Subclasses are declared as dataclasses are, but share the methods of this class. The import of `dataclasses`, which
    generates methods for each class, takes longer than a hook at a container's start may.
    """

    layout: ClassVar[Layout]

    def __init_subclass__(cls) -> None:
        cls.layout = Layout(cls)

    def __init__(self, **values: Any) -> None:
        self._fill(self.layout.defaults, values)

    def _fill(self, base: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        # __dict__ is updated at once, past __setattr__: setting fields one by one takes five times as long, and a plan
        # makes many thousands of records.
        mine, layout = self.__dict__, self.layout
        mine.update(base)
        mine.update(values)
        if len(mine) != len(layout.attributes):
            wrong = mine.keys() ^ layout.by_name.keys()
            raise TypeError(f"{type(self).__name__}: unknown or missing attributes: {', '.join(sorted(wrong))}")

    @classmethod
    def of_form(cls, values: Mapping[str, Any], others: Mapping[str, Any]) -> Self:
        """A record of these values, without a check that they are complete; `others` win over `values`."""
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
        """Attributes of the record class, in the order of their declaration."""
        return cls.layout.attributes

    @classmethod
    def attribute(cls, path: str) -> Attribute:
        """The attribute at a dotted path, such as `io.read_bps`. Raises KeyError."""
        first, _, rest = path.partition(".")
        for attribute in cls.attributes():
            if attribute.name == first:
                return attribute.record.attribute(rest) if attribute.record and rest else attribute
        raise KeyError(f"{cls.__name__} has no attribute {path}; this is a bug in scplan")

    @classmethod
    def paths(cls) -> Iterator[str]:
        """Dotted paths of all attributes that are not nested records themselves."""
        for attribute in cls.attributes():
            if attribute.record is None:
                yield attribute.name
            else:
                yield from (f"{attribute.name}.{path}" for path in attribute.record.paths())

    def leaves(self) -> Iterator[tuple[str, Attribute, Any]]:
        """(dotted path, attribute, value) of every attribute, those of set nested records included; None if unset."""
        for attribute in self.attributes():
            value = getattr(self, attribute.name)
            if attribute.record is None:
                yield attribute.name, attribute, value
            elif value is not None:
                for path, leaf, inner in value.leaves():
                    yield f"{attribute.name}.{path}", leaf, inner

    def get(self, path: str) -> Any:
        """The value at a dotted path; None if a nested record on the path is unset."""
        value: Any = self
        for name in path.split("."):
            value = getattr(value, name) if value is not None else None
        return value

    def shown(self, path: str, value: object) -> str:
        """Text for people of a value of the attribute at a dotted path. Subclasses override it."""
        return self.attribute(path).show(value)

    def replace(self, **changes: Any) -> Self:
        """A copy with some attributes changed."""
        copy = object.__new__(type(self))
        copy._fill(self.__dict__, changes)
        return copy

    @classmethod
    def default(cls, name: str) -> Any:
        """Value of the attribute if it is not written; None if it has no default."""
        return cls.layout.defaults.get(name)


class Resource(Attributes):
    """A device, NIC, route, mount or cgroup setting that is attached to a container. Each kind has its own subclass."""

    def remark(self) -> str:
        """A fact about the live resource that users should know, though its entry is fulfilled; "" if there is none."""
        return ""

    @property
    def is_lent(self) -> bool:
        """True for a thing of the host that the container, or its pod after it, has, and that is to be returned."""
        return False


def brought_by(record: Resource) -> str | None:
    """Identity of the resource whose entry made this one, as the disk of a partition; None if it has its own entry."""
    return next((getattr(record, one.name) for one in record.attributes() if one.role is Role.ORIGIN), None)

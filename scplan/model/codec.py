"""The JSON form of records: plain objects without unset attributes; reading checks the type of every value."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, TypeVar

from scplan.errors import RecordDamaged
from scplan.model.address import Address
from scplan.model.live import ContainerFacts, Naming, Status
from scplan.model.resource import CONFIGURABLE, Attribute, Attributes, Role

R = TypeVar("R", bound=Attributes)
_MAX_FORMS = 256


def to_json(record: Attributes, roles: Container[Role] = frozenset(Role)) -> dict[str, Any]:
    """The record as a JSON object, with the attributes of `roles`. Unset attributes are omitted, tuples are arrays."""
    document: dict[str, Any] = {}
    for attribute in record.attributes():
        value = getattr(record, attribute.name)
        if value is None or attribute.role not in roles:
            continue
        if attribute.record is not None:
            value = to_json(value, roles)
        elif attribute.many:
            value = list(value)
        document[attribute.name] = value
    return document


def to_entry(record: Attributes) -> dict[str, Any]:
    """The record as an entry of the configuration. Empty texts, which mean "none", are omitted."""
    return {name: value for name, value in to_json(record, CONFIGURABLE).items() if value != ""}


def from_json(record: type[R], document: object, where: str) -> R:
    """The record in a JSON object. Unknown keys are ignored: a newer minor version may have added them.

    Raises RecordDamaged, naming `where`, if an attribute is missing or has a wrong type.
    """
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where}: not a JSON object")
    # A host may have tens of thousands of records, but of few forms (sets of keys and types). A document of a form that
    # was checked before needs only its lists and nested records converted.
    layout = record.layout
    form = (*document, *map(type, document.values()))
    left = layout.known_forms.get(form)
    if left is not None:
        by_name = layout.by_name
        return record.of_form(document, {name: _value(by_name[name], document[name], where) for name in left})
    values, left = _checked(record, document, where)
    try:
        made = record(**values)
    except TypeError as error:
        raise RecordDamaged(f"{where}: {error}") from None
    if len(values) == len(document) and len(layout.known_forms) < _MAX_FORMS:
        layout.known_forms[form] = left
    return made


def _checked(record: type[Attributes], document: dict[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(values by name, names of the values that had to be converted: lists and nested records)"""
    layout = record.layout
    values = {}
    left = []
    for name, value in document.items():
        # Not isinstance(): true would pass as an int.
        if type(value) is layout.plain.get(name):
            values[name] = value
        elif name in layout.by_name and value is not None:
            values[name] = _value(layout.by_name[name], value, where)
            left.append(name)
    return values, tuple(left)


def _value(attribute: Attribute, value: object, where: str) -> Any:
    if attribute.record is not None:
        return from_json(attribute.record, value, f"{where}.{attribute.name}")
    assert attribute.type is not None
    stored = attribute.type.stored
    if attribute.many and isinstance(value, list) and all(type(item) is stored for item in value):
        return tuple(value)
    wanted = f"an array of {stored.__name__}" if attribute.many else stored.__name__
    raise RecordDamaged(f"{where}.{attribute.name}: {value!r} is not {wanted}")


def address_from_json(text: object, kinds: Container[str], where: str) -> Address:
    """The address in a JSON text. Raises RecordDamaged, naming `where`, unless it is one of a known kind."""
    parts = text.split("/", 2) if isinstance(text, str) else []
    if len(parts) != 3 or not all(parts):
        raise RecordDamaged(f"{where}: not an address: {text!r}")
    if parts[1] not in kinds:
        raise RecordDamaged(f"{where}: unknown kind in {text}")
    return Address(*parts)


def facts_to_json(facts: ContainerFacts) -> dict[str, Any]:
    """Facts of a container as in the JSON of plans. Facts that are not known are omitted."""
    return {
        "runtime": facts.runtime,
        "id": facts.id,
        "status": str(facts.status),
        "pid": facts.pid,
        "start_time": facts.start_time,
        **({"root": facts.root} if facts.root else {}),
        **({"cgroup": facts.cgroup} if facts.cgroup else {}),
        **({"place": facts.place} if facts.place else {}),
        **naming_to_json(facts.recorded_naming),
    }


def naming_to_json(naming: Naming | None) -> dict[str, str]:
    """The naming of a container as JSON keys, for the object with its other facts; unset keys are omitted."""
    if naming is None:
        return {}
    named = {"identity": naming.by, "image": naming.image, "label": naming.label}
    return {key: value for key, value in named.items() if value}


def naming_from_json(document: Mapping[str, Any]) -> Naming | None:
    """The naming from the keys of `naming_to_json`; None if there are none."""
    naming = Naming(*(str(document.get(key, "")) for key in ("identity", "image", "label")))
    return None if naming == Naming() else naming


def facts_from_json(name: str, document: object, where: str) -> ContainerFacts:
    """Facts of a container from JSON. Raises RecordDamaged if a fact is missing or has a wrong type."""
    try:
        if not isinstance(document, dict):
            raise TypeError
        pid, started = document["pid"], document.get("start_time", 0)
        if type(pid) is not int or type(started) is not int:
            raise TypeError
        return ContainerFacts(
            name=name,
            runtime=str(document["runtime"]),
            id=str(document["id"]),
            status=Status(document["status"]),
            pid=pid,
            start_time=started,
            root=str(document.get("root", "")),
            cgroup=str(document.get("cgroup", "")),
            place=str(document.get("place", "")),
            naming=naming_from_json(document),
        )
    except (KeyError, TypeError, ValueError):
        raise RecordDamaged(f"{where}: facts of container {name!r} are missing or malformed") from None

"""The one JSON form of records: plain objects without unset attributes; reading checks every type."""

from __future__ import annotations

from typing import Any, TypeVar

from scplan.errors import RecordDamaged
from scplan.model.live import ContainerFacts, Status
from scplan.model.resource import Attribute, Attributes

R = TypeVar("R", bound=Attributes)


def to_json(record: Attributes) -> dict[str, Any]:
    """The record as a JSON object: unset attributes are left out, tuples become arrays."""
    document: dict[str, Any] = {}
    for attribute in record.attributes():
        value = getattr(record, attribute.name)
        if value is None:
            continue
        if attribute.record is not None:
            value = to_json(value)
        elif attribute.many:
            value = list(value)
        document[attribute.name] = value
    return document


def from_json(record: type[R], document: object, where: str) -> R:
    """The record that a JSON object holds. Unknown keys are ignored: a newer minor version may have added them.

    Raises RecordDamaged, naming `where`, when an attribute is missing or of a wrong type.
    """
    if not isinstance(document, dict):
        raise RecordDamaged(f"{where}: not a JSON object")
    values = {
        attribute.name: _value(attribute, document[attribute.name], f"{where}.{attribute.name}")
        for attribute in record.attributes()
        if document.get(attribute.name) is not None
    }
    try:
        return record(**values)
    except TypeError as error:
        raise RecordDamaged(f"{where}: {error}") from None


def _value(attribute: Attribute, value: object, where: str) -> Any:
    if attribute.record is not None:
        return from_json(attribute.record, value, where)
    assert attribute.type is not None
    if attribute.many:
        if not isinstance(value, list):
            raise RecordDamaged(f"{where}: not an array")
        return tuple(_scalar(attribute.type.stored, item, where) for item in value)
    return _scalar(attribute.type.stored, value, where)


def _scalar(stored: type, value: object, where: str) -> Any:
    # bool is an int to Python, but never to a record.
    if type(value) is not stored:
        raise RecordDamaged(f"{where}: {value!r} is not of type {stored.__name__}")
    return value


def facts_to_json(facts: ContainerFacts) -> dict[str, Any]:
    """A container's facts as the plan's JSON has them, with its start time."""
    return {
        "runtime": facts.runtime,
        "id": facts.id,
        "status": str(facts.status),
        "pid": facts.pid,
        "start_time": facts.start_time,
    }


def facts_from_json(name: str, document: object, where: str) -> ContainerFacts:
    """Raises RecordDamaged when a fact is missing or of a wrong type."""
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
        )
    except (KeyError, TypeError, ValueError):
        raise RecordDamaged(f"{where}: facts of container {name!r} are missing or malformed") from None

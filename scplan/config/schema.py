"""The JSON Schema of the configuration, generated from the declarations of the kinds' records, for editors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scplan.config.configuration import RUNTIMES, VERSION
from scplan.config.fragments import IDENTITIES, MAX_IMAGE, MAX_NAME
from scplan.model.probe import MAX_COMMAND
from scplan.model.resource import CONFIGURABLE, Attribute, Attributes

if TYPE_CHECKING:
    from scplan.kinds.kind import Kind, Kinds

_EXTENSION = {"^x-": True}
_PROBE: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_COMMAND},
        {
            "type": "object",
            "required": ["command"],
            "properties": {
                "command": {"description": "words, quoted as in a shell; no shell takes part", "type": "string"},
                "timeout": {"description": "time limit; default 30s", "type": "string", "examples": ["500ms", "2m"]},
            },
            "additionalProperties": False,
        },
    ]
}
_NAME = r"^(x-|[^-./\s][^/\s]*$)"


def configuration_schema(kinds: Kinds) -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of a configuration file."""
    # patternProperties take keys that begin with x-; every other unknown key is an error, as in the readers.
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "scplan configuration",
        "type": "object",
        "required": ["version"],
        "properties": {
            "version": {"description": "version of the format", "enum": [int(VERSION), VERSION]},
            "runtime": _runtime("runtime of the containers that do not name one"),
            "profiles": _names("fragments that containers use by name", "#/$defs/profile"),
            "containers": _names("containers, by name, ID, or the beginning of a generated ID", "#/$defs/container"),
            "probes": _list_of(_PROBE, "commands, run on the host when all is changed; one that fails undoes it all"),
        },
        "patternProperties": _EXTENSION,
        "additionalProperties": False,
        "$defs": {
            "profile": _object(_sections(kinds)),
            "container": _object({**_container(), **_sections(kinds)}),
            **{kind.name: _entry(kind) for kind in kinds.values() if kind.section_form == "list"},
        },
    }


def _names(description: str, body: str) -> dict[str, Any]:
    return {
        "description": description,
        "type": ["object", "null"],
        "propertyNames": {"minLength": 1, "maxLength": MAX_NAME, "pattern": _NAME},
        "patternProperties": {"^(?!x-)": {"$ref": body}},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "properties": properties,
        "patternProperties": _EXTENSION,
        "additionalProperties": False,
    }


def _runtime(description: str) -> dict[str, Any]:
    return {"description": description, "enum": [*RUNTIMES, None]}


def _container() -> dict[str, Any]:
    return {
        "runtime": _runtime("runtime that knows the container; auto asks every one on the host"),
        "profiles": _list_of({"type": "string"}, "profiles whose entries the container has too", or_one=True),
        "identity": {
            "description": "id: a container made again under the name is another one; name: the records follow the"
            " name. Without it they follow the name of a container that its engine removes as it ends (--rm)",
            "enum": [*IDENTITIES, None],
        },
        "image": {
            "description": "identity name: glob of the images that a container made again may have;"
            " default: that of the container to which it was applied",
            "type": ["string", "null"],
            "minLength": 1,
            "maxLength": MAX_IMAGE,
            "examples": ["registry.example/web:*"],
        },
        "label": {
            "description": "identity name: a label that a container made again must have",
            "type": ["string", "null"],
            "pattern": "^[^=]+=",
            "maxLength": MAX_IMAGE,
            "examples": ["app=web"],
        },
        "pid": {"description": "runtime process: its process", "type": ["integer", "null"], "minimum": 1},
        "pid_file": {"description": "runtime process: file with the pid", "type": ["string", "null"], "pattern": "^/"},
    }


def _sections(kinds: Kinds) -> dict[str, Any]:
    module = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
    sections = {
        "modules": _list_of(
            module, "kernel modules that its resources need: loaded before they are made, never unloaded", or_one=True
        )
    }
    for kind in kinds.values():
        sections[kind.section] = _section(kind)
    return sections


def _list_of(item: dict[str, Any], description: str, *, or_one: bool = False) -> dict[str, Any]:
    array = {"type": "array", "items": item}
    if not or_one:
        return {"description": description, "oneOf": [array, {"type": "null"}]}
    return {"description": description, "anyOf": [array, item, {"type": "null"}]}


def _section(kind: Kind[Any]) -> dict[str, Any]:
    description = (kind.record.__doc__ or kind.name).strip().splitlines()[0]
    if kind.section_form == "list":
        return _list_of({"$ref": f"#/$defs/{kind.name}"}, description)
    value = kind.record.attribute("value")
    short = {
        "description": value.doc,
        "type": ["string", "number", "boolean", "null"],
        **({"examples": list(value.examples)} if value.examples else {}),
    }
    long = _record(kind.record)
    # The name of a setting is its key in the mapping.
    del long["properties"]["name"]
    long["properties"]["value"] = short
    long["required"] = ["value"]
    return {
        "description": description,
        "type": ["object", "null"],
        "additionalProperties": {"anyOf": [short, long]},
    }


def _entry(kind: Kind[Any]) -> dict[str, Any]:
    """Schema of an entry in a list: a mapping, or the short form if the kind has one."""
    long = {**_record(kind.record), "description": (kind.record.__doc__ or "").strip().splitlines()[0]}
    if not _has_short_form(kind):
        return long
    short = {"type": "string", "description": (kind.parse_short.__doc__ or "short form").strip().splitlines()[0]}
    return {"anyOf": [long, short]}


def _has_short_form(kind: Kind[Any]) -> bool:
    from scplan.kinds.kind import Kind as Contract

    return type(kind).parse_short is not Contract.parse_short


def _record(record: type[Attributes]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for attribute in record.attributes():
        if attribute.role in CONFIGURABLE:
            properties[attribute.name] = _attribute(attribute)
            for alias in attribute.aliases:
                properties[alias] = {**properties[attribute.name], "description": f"alias of {attribute.name}"}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "patternProperties": _EXTENSION,
        "additionalProperties": False,
    }
    if record.layout.required:
        schema["required"] = record.layout.required
    return schema


def _attribute(attribute: Attribute) -> dict[str, Any]:
    if attribute.record is not None:
        return {**_record(attribute.record), "type": ["object", "null"], "description": attribute.doc}
    assert attribute.type is not None
    schema = _nullable(dict(attribute.type.schema))
    if attribute.many:
        return _list_of(dict(attribute.type.schema), attribute.doc, or_one=True)
    schema["description"] = attribute.doc
    if attribute.examples:
        schema["examples"] = list(attribute.examples)
    return schema


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, which from now on accepts null, too, for an unset attribute."""
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        schema["type"] = list(dict.fromkeys([*types, "null"]))
    return schema

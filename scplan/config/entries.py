"""Reads the entries of a section into records, as the kind's record class declares: short forms, nested records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from scplan.config.report import Report, quoted
from scplan.config.yaml_source import Mapping as MappingNode
from scplan.config.yaml_source import Mark, Node, Scalar, Sequence
from scplan.kinds.kind import Kind
from scplan.model.resource import CONFIGURABLE, Attribute, Attributes, Resource, Role
from scplan.startup.named_tuple import NamedTuple

MAX_TEXT = 8192
"""Characters of a value; the longest one that the kernel takes is a path of 4095 bytes."""

MAX_ENTRIES = 10_000
"""Entries of one section; the limits of a container are far lower."""
MAX_LISTED = 1000
"""Elements of an attribute that is a list, and of profiles and modules."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class Entry(NamedTuple):
    """A resource that was read from an entry, and the entry's position."""

    resource: Resource
    mark: Mark | None


class Owner(NamedTuple):
    """The container or profile that a section belongs to, for messages."""

    what: str
    name: str

    def __str__(self) -> str:
        return f"{self.what} {quoted(self.name)}"


class _Finished(NamedTuple):
    """The result of an entry, without its position: equal entries share it."""

    identity: str
    resource: Resource


class _Invalid(Exception):
    """Raised after an error in an entry was reported: its record can't be made."""


class AttributeReader:
    """Parser of one attribute. `seen` holds the values of texts that were parsed before."""

    __slots__ = ("attribute", "many", "name", "nested", "parse", "seen")

    def __init__(self, attribute: Attribute, report: Report) -> None:
        self.attribute = attribute
        self.name = attribute.name
        self.many = attribute.many
        self.nested = RecordReader(attribute.record, attribute.name, report) if attribute.record else None
        self.parse: Callable[[str], Any] = attribute.type.parse if attribute.type else str
        self.seen: dict[str, Any] = {}


class RecordReader:
    """Reads mappings into the attributes of one record class."""

    def __init__(self, record: type[Attributes], name: str, report: Report) -> None:
        self.record = record
        self.name = name
        self.report = report
        self.readers: dict[str, AttributeReader] = {}
        self.attributes = [attribute for attribute in record.attributes() if attribute.role in CONFIGURABLE]
        for attribute in self.attributes:
            reader = AttributeReader(attribute, report)
            for written in (attribute.name, *attribute.aliases):
                self.readers[written] = reader
        self.required = record.layout.required
        self.required_set = frozenset(self.required)

    def read(self, node: MappingNode, label: Callable[[], str]) -> Any:
        """The record of a mapping. Raises _Invalid after all errors in the mapping were reported."""
        values: dict[str, Any] = {}
        failed: list[str] = []
        readers = self.readers
        for key, value in node.entries.items():
            reader = readers.get(key)
            if reader is None:
                if not key.startswith("x-"):
                    failed.append(key)
                continue
            if value.__class__ is Scalar:
                text = value.text
                if text in _NULLS and value.plain:
                    continue
                # Fast path for nearly all attributes. `seen` of a nested one is empty, so that _scalar() reports it.
                found = reader.seen.get(text)
                if found is None:
                    found = self._scalar(reader, value, label)
                elif reader.many:
                    found = (found,)
            else:
                found = self._structured(reader, value, label)
            if found is None:
                failed.append(reader.name)
            elif reader.name in values:
                self._written_twice(node, key, reader, label)
                failed.append(reader.name)
            else:
                values[reader.name] = found
        if failed:
            self._report_unknown(node, label)
        return self._made(values, failed, node.mark, label)

    def read_texts(self, texts: Mapping[str, str], mark: Mark | None, label: Callable[[], str]) -> Any:
        """The record of a short form, from the texts of its attributes. Raises _Invalid after errors were reported."""
        values: dict[str, Any] = {}
        failed: list[str] = []
        for name, text in texts.items():
            reader = self.readers[name]
            found = reader.seen.get(text)
            if found is None:
                found = self._parse(reader, text, mark, label)
            if found is None:
                failed.append(name)
            values[reader.name] = (found,) if reader.many else found
        return self._made(values, failed, mark, label)

    def _made(self, values: dict[str, Any], failed: list[str], mark: Mark | None, label: Callable[[], str]) -> Any:
        if not failed and self.required_set <= values.keys():
            return self.record(**values)
        missing = [name for name in self.required if name not in values and name not in failed]
        # An unknown key, reported already, may be the missing attribute, misspelt.
        if all(name in self.readers for name in failed):
            for name in missing:
                self.report.error("missing attribute", f"{label()} needs {quoted(name)}", mark=mark)
        raise _Invalid

    def _scalar(self, reader: AttributeReader, node: Scalar, label: Callable[[], str]) -> Any:
        if reader.nested is not None:
            return self._structured(reader, node, label)
        value = self._parse(reader, node.text, node.mark, label)
        return (value,) if reader.many and value is not None else value

    def _parse(self, reader: AttributeReader, text: str, mark: Mark | None, label: Callable[[], str]) -> Any:
        """The value of a text; None after the error was reported."""
        detail = f"it has {len(text)} characters; at most {MAX_TEXT} make sense"
        if len(text) <= MAX_TEXT:
            try:
                value = reader.seen[text] = reader.parse(text)
                return value
            except ValueError as error:
                detail = str(error)
        words = reader.attribute.type.schema.get("enum", ()) if reader.attribute.type else ()
        hint = self.report.guess(text, words) if isinstance(words, list | tuple) else ""
        self.report.error("invalid value", f"{label()}, {reader.name}: {detail}", hint=hint, mark=mark)
        return None

    def _structured(self, reader: AttributeReader, node: Node, label: Callable[[], str]) -> Any:
        """The value of a list or a nested mapping; None after the error was reported."""
        if reader.nested is not None:
            return self._nested(reader, reader.nested, node, label)
        if isinstance(node, Sequence) and reader.many:
            return self._list(reader, node, label)
        wanted = "a list of values" if reader.many else "one value"
        found = "a mapping" if isinstance(node, MappingNode) else "a list"
        detail = f"{label()}, {reader.name}: {wanted} is expected, not {found}"
        self.report.error("invalid value", detail, mark=node.mark)
        return None

    def _nested(self, reader: AttributeReader, record: RecordReader, node: Node, label: Callable[[], str]) -> Any:
        if isinstance(node, MappingNode):
            try:
                return record.read(node, lambda: f"{reader.name} of {label()}")
            except _Invalid:
                return None
        known = ", ".join(attribute.name for attribute in record.attributes)
        detail = f"{label()}, {reader.name}: a mapping is expected"
        self.report.error("invalid value", detail, hint=f"its keys are {known}", mark=node.mark)
        return None

    def _list(self, reader: AttributeReader, node: Sequence, label: Callable[[], str]) -> tuple[Any, ...] | None:
        if len(node.items) > MAX_LISTED:
            detail = f"{label()}, {reader.name}: the list has {len(node.items)} elements; at most {MAX_LISTED} are read"
            self.report.error("invalid value", detail, mark=node.mark)
            return None
        values: list[Any] = []
        places: dict[Any, Mark | None] = {}
        valid = True
        for item in node.items:
            value = None
            if not isinstance(item, Scalar) or item.is_null:
                detail = f"{label()}, {reader.name}: each element of the list is one value"
                self.report.error("invalid value", detail, mark=item.mark)
            else:
                value = self._parse(reader, item.text, item.mark, label)
            if value is not None and value in places:
                first = places[value]
                detail = f"{label()}, {reader.name}: {quoted(str(value))} is already in line {_line(first)}"
                self.report.error("listed twice", detail, hint="remove one of them", mark=item.mark)
                value = None
            if value is None:
                valid = False
            else:
                places[value] = item.mark
                values.append(value)
        return tuple(values) if valid else None

    def _report_unknown(self, node: MappingNode, label: Callable[[], str]) -> None:
        known = [attribute.name for attribute in self.attributes]
        for key, mark, _ in node.items():
            if key not in self.readers and not key.startswith("x-"):
                detail = f"{label()} has no attribute {quoted(key)}"
                self.report.unknown("attribute", detail, key, known, mark)

    def _written_twice(self, node: MappingNode, key: str, reader: AttributeReader, label: Callable[[], str]) -> None:
        first = next(name for name in node.entries if self.readers.get(name) is reader)
        detail = f"{label()}: {quoted(key)} and {quoted(first)} (line {_line(node.key_mark(first))}) are the same"
        self.report.error("written twice", detail, hint="remove one of them", mark=node.key_mark(key))


def _line(mark: Mark | None) -> str:
    return str(mark.line + 1) if mark else "?"


class SectionReader:
    """Reads the sections of one kind, such as `nics:`, into resources by identity."""

    def __init__(self, kind: Kind[Any], report: Report) -> None:
        self.kind = kind
        self.report = report
        self.records = RecordReader(kind.record, kind.name, report)
        naming = [attribute.name for attribute in self.records.attributes if attribute.role is Role.IDENTITY]
        self.naming = [*naming, *(name for name in self.records.required if name not in naming)]
        # Many containers have the same entry: its result is used again.
        self.seen: dict[tuple[str, str | bool], _Finished] = {}

    def read(self, node: Node, owner: Owner) -> dict[str, Entry]:
        """Entries of a section, by identity. Invalid entries are reported and left out."""
        entries: dict[str, Entry] = {}
        if isinstance(node, Scalar) and node.is_null:
            return entries
        size = 0 if isinstance(node, Scalar) else len(node)
        if size > MAX_ENTRIES:
            detail = f"{quoted(self.kind.section)} of {owner} has {size} entries; at most {MAX_ENTRIES} are read"
            self.report.error("too many entries", detail, mark=node.mark)
        elif self.kind.section_form == "mapping":
            self._read_mapping(node, owner, entries)
        else:
            self._read_list(node, owner, entries)
        return entries

    def _read_list(self, node: Node, owner: Owner, entries: dict[str, Entry]) -> None:
        if not isinstance(node, Sequence):
            hint = 'begin each entry with "- "'
            detail = f"{quoted(self.kind.section)} of {owner} is a list"
            self.report.error("not a list", detail, hint=hint, mark=node.mark)
            return
        for item in node.items:
            try:
                found = self._read_item(item)
            except _Invalid:
                continue
            self._add(found, item.mark, owner, entries)

    def _read_item(self, item: Node) -> _Finished:
        """The result of an entry in a list. Raises _Invalid after errors were reported."""
        if isinstance(item, Scalar):
            written = item.text, item.plain
            found = self.seen.get(written)
            if found is None:
                found = self.seen[written] = self._finished(self._short(item), item.mark)
            return found
        if isinstance(item, MappingNode):
            return self._finished(self.records.read(item, partial(self._label, item)), item.mark)
        detail, hint = f"an entry of {quoted(self.kind.section)} is not a list", "take the inner dash away"
        self.report.error(f"invalid {self.kind.name}", detail, hint=hint, mark=item.mark)
        raise _Invalid

    def _short(self, item: Scalar) -> Any:
        name = self.kind.name
        if item.is_null:
            detail = f"the entry of {quoted(self.kind.section)} holds nothing"
            self.report.error(f"empty {name}", detail, mark=item.mark)
            raise _Invalid
        try:
            if len(item.text) > MAX_TEXT:
                raise ValueError(f"it has {len(item.text)} characters; at most {MAX_TEXT} make sense")
            texts = self.kind.parse_short(item.text)
        except ValueError as error:
            self.report.error(f"invalid {name}", str(error), hint=getattr(error, "hint", ""), mark=item.mark)
            raise _Invalid from None
        return self.records.read_texts(texts, item.mark, lambda: f"{name} {quoted(item.text)}")

    def _read_mapping(self, node: Node, owner: Owner, entries: dict[str, Entry]) -> None:
        section = self.kind.section
        if not isinstance(node, MappingNode):
            hint = "write each setting as `name: value`"
            self.report.error("not a mapping", f"{quoted(section)} of {owner} is a mapping", hint=hint, mark=node.mark)
            return
        for key, mark, value in node.items():
            if key.startswith("x-"):
                continue
            if isinstance(value, MappingNode):
                try:
                    self._add(self._read_long(key, mark, value), mark, owner, entries)
                except _Invalid:
                    continue
            elif not isinstance(value, Scalar):
                detail = f"{section} {quoted(key)}: one value is expected"
                self.report.error("invalid value", detail, hint="put it on one line, in quotes", mark=value.mark)
            elif not value.is_null:
                try:
                    found = self._read_setting(key, mark, value.text)
                except _Invalid:
                    continue
                self._add(found, mark, owner, entries)

    def _read_long(self, key: str, mark: Mark | None, node: MappingNode) -> _Finished:
        """The result of an entry `key: {…}` in a mapping. Raises _Invalid after errors were reported."""
        label = partial(str, f"{self.kind.section} {quoted(key)}")
        if "name" in node.entries:
            detail = f"{label()} has no attribute {quoted('name')}"
            self.report.error("unknown attribute", detail, hint="its key is its name", mark=node.key_mark("name"))
            raise _Invalid
        named = MappingNode({"name": Scalar(key, False, mark), **node.entries}, [mark, *node.key_marks], node.mark)
        return self._finished(self.records.read(named, label), mark)

    def _read_setting(self, key: str, mark: Mark | None, text: str) -> _Finished:
        """The result of an entry `key: text` in a mapping. Raises _Invalid after errors were reported."""
        found = self.seen.get((key, text))
        if found is None:
            label = f"{self.kind.section} {quoted(key)}"
            record = self.records.read_texts({"name": key, "value": text}, mark, partial(str, label))
            found = self.seen[key, text] = self._finished(record, mark)
        return found

    def _finished(self, record: Any, mark: Mark | None) -> _Finished:
        """The normalised record and its identity. Raises _Invalid after reporting the error if the kind refuses it."""
        kind = self.kind
        try:
            resource = kind.normalise(record)
            return _Finished(kind.identity(resource), resource)
        except ValueError as error:
            self.report.error(f"invalid {kind.name}", str(error), hint=getattr(error, "hint", ""), mark=mark)
            raise _Invalid from None

    def _add(self, found: _Finished, mark: Mark | None, owner: Owner, entries: dict[str, Entry]) -> None:
        identity, resource = found
        first = entries.get(identity)
        if first is None:
            entries[identity] = Entry(resource, mark)
            return
        detail = f"{self.kind.name} {quoted(identity)} of {owner} is already in line {_line(first.mark)}"
        self.report.error(f"duplicate {self.kind.name}", detail, hint="remove one of them", mark=mark)

    def _label(self, node: MappingNode) -> str:
        """Name of an entry for messages, `nic "eth0"`, as it is written: its identity may not be known yet."""
        for name in self.naming:
            value = node.entries.get(name)
            if isinstance(value, Scalar) and not value.is_null:
                return f"{self.kind.name} {quoted(value.text)}"
        return f"a {self.kind.name}"

"""Reads YAML into nodes with positions. Scalars stay texts: the attribute decides on the type, not YAML."""

from __future__ import annotations

import gc
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from scplan.errors import Diagnostic, SourceRange
from scplan.startup.named_tuple import NamedTuple

if TYPE_CHECKING:
    import yaml

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 1_000_000
"""Values of one file, with what its aliases stand for: about 17 000 containers of ten resources."""
MAX_PROBLEMS = 100
# A mask: the count is compared with its limit at each 65 536th node.
_CHECKED_EVERY = 0xFFFF

STDIN = "-"

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_CORE_TAGS = {
    "scalar": frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")),
    "sequence": frozenset({"tag:yaml.org,2002:seq"}),
    "mapping": frozenset({"tag:yaml.org,2002:map"}),
}
# Characters outside of c-printable, YAML 1.2.2, 5.1; U+FEFF is allowed at the start of a file only.
# Compiled only when it is needed: compiling takes as long as reading a small file.
_NOT_YAML = "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\ufeff"


class Mark(Protocol):
    """Position of a node; line and column count from 0. libyaml's marks have this form, and are kept as they are."""

    @property
    def name(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


def source_range(mark: Mark | None) -> SourceRange | None:
    """The position for people, counted from 1; None for a node that was not read from YAML."""
    return SourceRange(mark.name, mark.line + 1, mark.column + 1) if mark else None


class Scalar:
    """A scalar, as text. `plain` is False if it was quoted: "null" in quotes is a text, and not null."""

    __slots__ = ("mark", "plain", "text")

    def __init__(self, text: str, plain: bool, mark: Mark | None) -> None:
        self.text = text
        self.plain = plain
        self.mark = mark

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS

    @property
    def source(self) -> SourceRange | None:
        return source_range(self.mark)


class Sequence:
    __slots__ = ("items", "mark")

    def __init__(self, items: list[Node], mark: Mark | None) -> None:
        self.items = items
        self.mark = mark

    def __len__(self) -> int:
        return len(self.items)

    @property
    def source(self) -> SourceRange | None:
        return source_range(self.mark)


class Mapping:
    """Nodes by key, in file order. `key_marks` are the positions of the keys, in the same order."""

    __slots__ = ("entries", "key_marks", "mark")

    def __init__(self, entries: dict[str, Node], key_marks: list[Mark | None], mark: Mark | None) -> None:
        self.entries = entries
        self.key_marks = key_marks
        self.mark = mark

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def source(self) -> SourceRange | None:
        return source_range(self.mark)

    def items(self) -> Iterator[tuple[str, Mark | None, Node]]:
        """(key, position of the key, node) of each entry."""
        for (key, node), mark in zip(self.entries.items(), self.key_marks, strict=True):
            yield key, mark, node

    def key_mark(self, key: str) -> Mark | None:
        """Position of a key of the mapping."""
        return self.key_marks[list(self.entries).index(key)]


Node = Scalar | Sequence | Mapping


class Document(NamedTuple):
    """The content of a file, and errors. `root` is None if the file can't be read; with errors it may still be set."""

    root: Node | None
    problems: tuple[Diagnostic, ...]


def read_file(path: str) -> Document:
    """The document in a regular file, or from standard input if `path` is "-" or "/dev/stdin"."""
    name = shown(path)
    try:
        data = _read_stdin() if path in (STDIN, "/dev/stdin") else _read_regular_file(path)
    except _NotReadable as problem:
        return _failed(problem.args[0], problem.hint, SourceRange(name, 1, 1))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        hint = "name the files with -f" if isinstance(error, FileNotFoundError) else ""
        return _failed(f"{name}: {reason}", hint, None, summary="can't read the file")
    if len(data) > MAX_FILE_BYTES:
        limit = f"a configuration file may have at most {MAX_FILE_BYTES // 1024**2} MiB"
        return _failed(limit, "split it into several files of one directory", SourceRange(name, 1, 1))
    return parse(data, name)


def shown(path: str) -> str:
    """A path for messages, with control characters and bytes that are not UTF-8 escaped."""
    if path in (STDIN, "/dev/stdin"):
        return "<stdin>"
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class _NotReadable(Exception):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def _read_regular_file(path: str) -> bytes:
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _NotReadable("it is not a regular file", "pipe the configuration to standard input, with -f -")
        return _read_bounded(file)


def _open_at_once(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO must not wait for a writer, fifo(7).
    # O_NOCTTY: a terminal must not become the controlling terminal of this process, open(2).
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def _read_stdin() -> bytes:
    with open(0, "rb", buffering=0, closefd=False) as file:
        return _read_bounded(file)


def _read_bounded(file: io.FileIO) -> bytes:
    """Content of a file, up to MAX_FILE_BYTES + 1 bytes: that one byte more shows that the file is too large."""
    chunks: list[bytes] = []
    left = MAX_FILE_BYTES + 1
    while left and (chunk := file.read(min(left, 1024 * 1024))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def parse(data: bytes, name: str) -> Document:
    """The document in UTF-8 `data`. `name` is the file's name in messages."""
    # The byte order marks of UTF-16, which libyaml would read.
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _failed("the file is UTF-16", "save it as UTF-8", SourceRange(name, 1, 1))
    import yaml

    builder = _Builder(data, name)
    try:
        with collector_paused():
            root = builder.document()
    except yaml.reader.ReaderError:
        return Document(None, (_unreadable_text(data, name),))
    except yaml.MarkedYAMLError as error:
        return Document(None, (*builder.problems, _malformed(error, data, name)))
    except _Stop as stop:
        return Document(None, (*builder.problems, stop.diagnostic))
    return Document(root, tuple(builder.problems))


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's cycle collector while large trees are built: it would walk them again and again.

    With the collector, reading takes twice the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            # freeze() and unfreeze() move all objects to the oldest generation. The trees have no cycles, and would be
            # walked in vain at the next allocations.
            gc.freeze()
            gc.unfreeze()
            gc.enable()


def _failed(detail: str, hint: str, source: SourceRange | None, *, summary: str = "unsuitable file") -> Document:
    return Document(None, (Diagnostic(summary=summary, detail=detail, hint=hint, source=source),))


def _unreadable_text(data: bytes, name: str) -> Diagnostic:
    """Error at the first byte that is not UTF-8, or the first character that YAML does not allow.

    Its position is computed here: libyaml's error has an offset in its own buffer.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before, what = data[: error.start].decode("utf-8"), f"byte 0x{data[error.start]:02x} is not UTF-8"
    else:
        match = re.compile(_NOT_YAML).search(text, 1 if text.startswith("\ufeff") else 0)
        offset = match.start() if match else 0
        before, what = text[:offset], f"the character U+{ord(text[offset]):04X} is not allowed in YAML"
    line, column = before.count("\n"), len(before) - (before.rfind("\n") + 1)
    hint = "save the file as UTF-8, without control characters"
    return Diagnostic(summary="not text", detail=what, hint=hint, source=SourceRange(name, line + 1, column + 1))


def _malformed(error: yaml.MarkedYAMLError, data: bytes, name: str) -> Diagnostic:
    mark = error.problem_mark or error.context_mark
    source = source_range(mark) or SourceRange(name, 1, 1)
    detail = error.problem or "it can't be parsed"
    if error.context and error.context_mark:
        detail = f"{error.context} that begins in line {error.context_mark.line + 1}: {detail}"
    return Diagnostic(summary="malformed YAML", detail=detail, hint=_syntax_hint(data, source), source=source)


def _syntax_hint(data: bytes, source: SourceRange) -> str:
    lines = data.split(b"\n", source.line)
    line = lines[source.line - 1] if source.line <= len(lines) else b""
    character = line[source.column - 1 : source.column]
    if b"\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces; YAML does not allow tabs"
    if character in (b"@", b"`", b"%", b"*", b"&"):
        return f"put the value in quotes; {character.decode()} means something else in YAML"
    return "look at the indentation, colons and quotes of this line and of the one before"


class _Stop(Exception):
    """Raised for an error after which the rest of the file can't be read."""

    def __init__(self, summary: str, detail: str, hint: str, mark: Mark | None) -> None:
        super().__init__(summary)
        self.diagnostic = Diagnostic(summary=summary, detail=detail, hint=hint, source=source_range(mark))


class _Stream(io.BytesIO):
    """Bytes with a `name`, which libyaml puts into its marks."""

    name: str


class _Builder:
    """Builds nodes from libyaml's events.

    PyYAML's own composer recurses without a limit, and resolves the types of scalars, which are not used here.
    """

    def __init__(self, data: bytes, name: str) -> None:
        from yaml import events
        from yaml._yaml import CParser

        stream = _Stream(data)
        stream.name = name
        self.name = name
        self.problems: list[Diagnostic] = []
        self.next_event: Callable[[], Any] = CParser(stream).get_event
        self.events = events
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.open_anchors: set[str] = set()
        self.count = 0
        self.depth = 0

    def document(self) -> Node | None:
        """The document of the file. Raises _Stop if the file has no document, or more than one."""
        events = self.events
        # The first event is StreamStartEvent; then DocumentStartEvent, nodes, DocumentEndEvent, StreamEndEvent.
        self.next_event()
        event = self.next_event()
        if event.__class__ is events.StreamEndEvent:
            raise _Stop("empty file", "it holds no document", 'begin with "version: 1"', _Start(self.name))
        root = self.node(self.next_event())
        self.next_event()
        event = self.next_event()
        if event.__class__ is not events.StreamEndEvent:
            hint = "put each document into a file of its own"
            raise _Stop("more than one document", 'a second document begins with "---"', hint, event.start_mark)
        return root

    def node(self, event: Any) -> Node:
        events = self.events
        kind = event.__class__
        if kind is events.AliasEvent:
            return self.alias(event)
        anchor = event.anchor
        if anchor is None:
            return self.unnamed(event, kind)
        before = self.count
        self.open_anchors.add(anchor)
        node = self.unnamed(event, kind)
        self.open_anchors.discard(anchor)
        self.anchors[anchor] = node, self.count - before
        return node

    def unnamed(self, event: Any, kind: type) -> Node:
        if kind is self.events.ScalarEvent:
            if event.tag is not None:
                self.check_tag(event, "scalar")
            self.count += 1
            return Scalar(event.value, event.implicit[0], event.start_mark)
        self.enter(event)
        is_sequence = kind is self.events.SequenceStartEvent
        node: Node = self.sequence(event) if is_sequence else self.mapping(event)
        self.depth -= 1
        return node

    def enter(self, event: Any) -> None:
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH:
            limit = f"lists and mappings may be nested {MAX_DEPTH} deep"
            raise _Stop("nested too deeply", limit, "no configuration needs more than 6", event.start_mark)
        self.check_count(event)

    def check_count(self, event: Any) -> None:
        if self.count > MAX_NODES:
            limit = f"a file may hold at most {MAX_NODES} values, counting what its aliases stand for"
            raise _Stop("too many values", limit, "use fewer aliases, or several files", event.start_mark)

    def sequence(self, event: Any) -> Sequence:
        if event.tag is not None:
            self.check_tag(event, "sequence")
        items: list[Node] = []
        end, scalar = self.events.SequenceEndEvent, self.events.ScalarEvent
        start, next_event = event.start_mark, self.next_event
        while (event := next_event()).__class__ is not end:
            # Plain scalars are built here, without two calls for each: nearly all items are such.
            if event.__class__ is scalar and event.tag is None and event.anchor is None:
                self.count += 1
                items.append(Scalar(event.value, event.implicit[0], event.start_mark))
                if not self.count & _CHECKED_EVERY:
                    self.check_count(event)
            else:
                items.append(self.node(event))
        self.check_count(event)
        return Sequence(items, start)

    def mapping(self, event: Any) -> Mapping:
        if event.tag is not None:
            self.check_tag(event, "mapping")
        entries: dict[str, Node] = {}
        marks: list[Mark | None] = []
        merges: list[Node] = []
        end, scalar = self.events.MappingEndEvent, self.events.ScalarEvent
        start, next_event, count = event.start_mark, self.next_event, 0
        while (event := next_event()).__class__ is not end:
            if event.__class__ is scalar and event.tag is None and event.anchor is None:
                key, mark, is_merge = event.value, event.start_mark, event.value == "<<" and event.implicit[0]
            else:
                key, mark, is_merge = self.unusual_key(event), event.start_mark, False
            event = next_event()
            if event.__class__ is scalar and event.tag is None and event.anchor is None:
                count += 1
                value: Node = Scalar(event.value, event.implicit[0], event.start_mark)
                if count > MAX_NODES:
                    break
            else:
                value = self.node(event)
            if is_merge:
                merges.append(value)
            elif key in entries:
                self.report_duplicate(key, mark, marks[list(entries).index(key)])
            else:
                entries[key] = value
                marks.append(mark)
        self.count += count
        self.check_count(event)
        for value in merges:
            self.merge(entries, marks, value)
        return Mapping(entries, marks, start)

    def unusual_key(self, event: Any) -> str:
        node = self.node(event)
        if isinstance(node, Scalar):
            return node.text
        hint = "a key is a text; put it in quotes if it begins with [ or {"
        raise _Stop("unsuitable key", "a list or mapping can't be a key", hint, event.start_mark)

    def merge(self, entries: dict[str, Node], marks: list[Mark | None], merged: Node) -> None:
        """Add the entries of a merge key `<<` that the mapping does not have itself; the first of several wins."""
        for node in merged.items if isinstance(merged, Sequence) else [merged]:
            if not isinstance(node, Mapping):
                detail = '"<<" takes a mapping, or a list of mappings'
                self.problem("unsuitable merge", detail, "name an anchor: <<: *common", node.mark)
                continue
            self.count += len(node.entries)
            for key, mark, value in node.items():
                if key not in entries:
                    entries[key] = value
                    marks.append(mark)

    def alias(self, event: Any) -> Node:
        anchor: str = event.anchor
        if anchor in self.open_anchors:
            detail = f'"*{anchor}" lies inside of what "&{anchor}" names'
            raise _Stop("endless alias", detail, "move the alias out of it", event.start_mark)
        if anchor not in self.anchors:
            hint = f'define it before, with "&{anchor}", or put the value in quotes'
            raise _Stop("unknown alias", f'there is no anchor "&{anchor}" above', hint, event.start_mark)
        node, size = self.anchors[anchor]
        # An alias counts as the nodes that it stands for: nested aliases multiply, and could exhaust memory later.
        self.count += size
        self.check_count(event)
        return node

    def check_tag(self, event: Any, form: str) -> None:
        """Report a tag, unless it is YAML's core tag of that form of node. Scalars stay texts, whatever their tag."""
        if event.tag not in _CORE_TAGS[form]:
            hint = "leave the tag out, or put a value that begins with ! in quotes"
            self.problem("unknown tag", f'the tag "{event.tag}" is not supported', hint, event.start_mark)

    def report_duplicate(self, key: str, mark: Any, first: Mark | None) -> None:
        detail = f'"{key}" is in line {mark.line + 1} and already in line {first.line + 1 if first else 1}'
        self.problem("duplicate key", detail, "remove one of them, or merge what they hold", mark)

    def problem(self, summary: str, detail: str, hint: str, mark: Mark | None) -> None:
        if len(self.problems) == MAX_PROBLEMS:
            raise _Stop("too many errors", f"the file has more than {MAX_PROBLEMS}", "mend those above first", mark)
        self.problems.append(Diagnostic(summary=summary, detail=detail, hint=hint, source=source_range(mark)))


class _Start(NamedTuple):
    """Position of the first character of a file."""

    name: str
    line: int = 0
    column: int = 0

"""Whatever is in the files: a configuration or reasoned errors, never a traceback. The number of cases is printed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scplan.config import Configuration, configuration_from_json, load
from scplan.config.fragments import FileReader
from scplan.config.loading import checked
from scplan.config.report import Report
from scplan.config.yaml_source import parse, shown
from scplan.errors import ConfigurationError, Diagnostic
from scplan.kinds import KINDS
from scplan.model.resource import CONFIGURABLE, Attribute, Attributes
from tests import tried

TRIED = tried.TRIED["fuzzed configurations"]
CASES = int(os.environ.get("SCPLAN_FUZZ_CASES", "300"))
FUZZ = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
_EXAMPLES = [path.read_text() for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))]


def check_diagnostics(diagnostics: tuple[Diagnostic, ...], *, with_source: bool) -> None:
    assert diagnostics
    for diagnostic in diagnostics:
        text = str(diagnostic)
        assert diagnostic.summary
        assert len(text) < 20_000
        assert all(letter.isprintable() or letter == "\n" for letter in text), text
        text.encode()
        if with_source and diagnostic.summary != "too many errors":
            assert diagnostic.source is not None, text


def check_text(data: bytes) -> None:
    """Reads `data` as a file would be; what is valid must survive its JSON form."""
    report = Report()
    document = parse(data, "fuzz.yaml")
    report.errors.extend(document.problems)
    files = FileReader(KINDS, report)
    if document.root is not None:
        files.read(document.root)
    try:
        configuration = checked(files, KINDS, report)
    except ConfigurationError as error:
        TRIED["refused"] += 1
        check_diagnostics(error.diagnostics, with_source=True)
        return
    TRIED["valid"] += 1
    check_json_form(configuration)


def check_json_form(configuration: Configuration) -> None:
    document = json.loads(json.dumps(configuration.to_json()))
    again = configuration_from_json(document, KINDS)
    assert again.containers == configuration.containers
    assert again.to_json() == document


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check_text(data)


_PIECES = st.sampled_from(
    [
        "version: 1\n",
        "containers:\n",
        "  web:\n",
        "    nics:\n",
        "      - name: eth0\n",
        "        mtu: 1500\n",
        "- ",
        "? ",
        "a",
        ": ",
        ":",
        "\n",
        " ",
        "  ",
        "\t",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&a ",
        "*a",
        "!x ",
        "!!str ",
        "<<: *a",
        "|",
        ">",
        "'",
        '"',
        "#",
        "%",
        "@",
        "`",
        "---\n",
        "...\n",
        "~",
        "null",
        "\u2028",
        "\ufeff",
        "\x85",
        "ä",
        "🙂",
        '"\\ud800"',
        "profiles:\n",
        "  p:\n",
        "    mounts: [/a:/b]\n",
        "    profiles: p\n",
        "    cgroup: {pids.max: 5}\n",
        '"\\0"',
    ]
)


@FUZZ
@given(st.lists(_PIECES, max_size=40).map("".join))
def test_pieces_of_yaml(text: str) -> None:
    check_text(text.encode("utf-8", "surrogatepass"))


@FUZZ
@given(st.data())
def test_damaged_examples(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(_EXAMPLES))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.one_of(_PIECES, st.text(max_size=5), st.just(""))) + text[end:]
    check_text(text.encode("utf-8", "surrogatepass"))


def _words() -> list[str]:
    """Keys that mean something somewhere, and some that do not."""
    words = {
        "version",
        "runtime",
        "profiles",
        "containers",
        "web",
        "db",
        "p",
        "pid",
        "pid_file",
        "modules",
        "x-y",
        "zz",
    }
    words |= {"memory.max", "cpu.max", "pids.max", "cpuset.cpus", "io.max"}
    for kind in KINDS.values():
        words.add(kind.section)
        for attribute in kind.record.attributes():
            words |= {attribute.name, *attribute.aliases}
            if attribute.record is not None:
                words |= {nested.name for nested in attribute.record.attributes()}
    return sorted(words)


_VALUES = [
    "",
    "1",
    "0",
    "-1",
    "4242",
    "99999999999999999999999",
    "1.5",
    "10m",
    "1.5g",
    "true",
    "no",
    "null",
    "rw",
    "0660",
    "runc",
    "process",
    "rslave",
    "shared",
    "/dev/sdb",
    "/dev/sdb:/dev/x:rw",
    "/a:/b:ro,rslave",
    "/a",
    "/",
    "/proc/x",
    "/../x",
    "eth0",
    "veth",
    "lo",
    "physical",
    "10.0.0.1",
    "10.0.0.0/8",
    "10.0.0.5/24",
    "fd00::1",
    "fd00::/64",
    "fd00::5/64",
    "::/0",
    "default",
    "max",
    "02:00:00:00:00:01",
    "0-3,5",
    "50000 100000",
    "p",
    "web",
    "br0",
    "a" * 300,
    "é" * 8,
    ":::",
    ",",
    "a:b:c:d:e",
]
_TEXTS = st.sampled_from(_VALUES)
_SCALARS = st.one_of(_TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
_STRUCTURES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(_words()) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=25,
)


def _parses(attribute: Attribute, text: str) -> bool:
    assert attribute.type is not None
    try:
        attribute.type.parse(text)
    except ValueError:
        return False
    return True


def _defaults(record: type[Attributes]) -> set[str]:
    return set(record.layout.defaults)


def _valid_record(record: type[Attributes]) -> st.SearchStrategy[Any]:
    """Mappings whose attributes are valid one by one; together they may still contradict each other."""
    values: dict[str, st.SearchStrategy[Any]] = {}
    for attribute in record.attributes():
        if attribute.role in CONFIGURABLE and attribute.record is not None:
            values[attribute.name] = _valid_record(attribute.record)
        elif attribute.role in CONFIGURABLE:
            texts = [text for text in _VALUES if _parses(attribute, text)]
            assert texts, attribute.name
            values[attribute.name] = st.sampled_from(texts)
    required = {name: value for name, value in values.items() if name not in _defaults(record)}
    optional = {name: value for name, value in values.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional)


def _plausible_entry(kind: Any) -> st.SearchStrategy[Any]:
    names = [attribute.name for attribute in kind.record.attributes()]
    long = st.dictionaries(st.sampled_from(names), st.one_of(_SCALARS, _STRUCTURES), max_size=6)
    return st.one_of(long, _TEXTS)


def _plausible_section(kind: Any) -> st.SearchStrategy[Any]:
    if kind.section_form == "mapping":
        return st.dictionaries(st.sampled_from(_words()), _SCALARS, max_size=4)
    return st.lists(_plausible_entry(kind), max_size=4)


_BODIES = st.fixed_dictionaries(
    {},
    optional={
        **{kind.section: _plausible_section(kind) for kind in KINDS.values()},
        "runtime": _TEXTS,
        "profiles": st.lists(st.sampled_from(["p", "q"]), max_size=3),
        "pid": _SCALARS,
        "modules": _STRUCTURES,
    },
)
_DOCUMENTS = st.one_of(
    _STRUCTURES,
    st.fixed_dictionaries(
        {
            "version": st.just(1),
            "containers": st.dictionaries(st.sampled_from(["web", "db", "a/b"]), _BODIES, max_size=3),
        },
        optional={"profiles": st.dictionaries(st.sampled_from(["p", "q"]), _BODIES, max_size=2), "runtime": _TEXTS},
    ),
)


_LISTED = [kind for kind in KINDS.values() if kind.section_form == "list"]
_VALID_BODIES = st.fixed_dictionaries(
    {}, optional={kind.section: st.lists(_valid_record(kind.record), max_size=2) for kind in _LISTED}
)


@FUZZ
@given(_VALID_BODIES)
def test_structures_of_valid_values(body: Any) -> None:
    check_document({"version": 1, "containers": {"web": body}})


@FUZZ
@given(_DOCUMENTS)
def test_any_structure(document: Any) -> None:
    check_document(document)


def check_document(document: Any) -> None:
    """Reads a document as a plan file would hold it."""
    try:
        configuration = configuration_from_json(document, KINDS)
    except ConfigurationError as error:
        TRIED["refused"] += 1
        check_diagnostics(error.diagnostics, with_source=False)
    else:
        TRIED["valid"] += 1
        check_json_form(configuration)


@FUZZ
@given(_DOCUMENTS)
def test_any_structure_as_yaml(document: Any) -> None:
    check_text(json.dumps(document).encode())


@FUZZ
@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_paths(paths: list[str]) -> None:
    missing = [f"/nonexistent/{path}" for path in paths]
    with pytest.raises(ConfigurationError) as caught:
        load(missing, KINDS)
    TRIED["refused"] += 1
    # A file that can't be opened has no lines: its path is in the message.
    check_diagnostics(caught.value.diagnostics, with_source=False)
    assert {one.detail.rpartition(": ")[0] for one in caught.value.diagnostics} == {shown(path) for path in missing}

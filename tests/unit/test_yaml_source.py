"""YAML to nodes with places: what is read, what is refused, and where it is said to be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scplan.config.yaml_source import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    Document,
    Mapping,
    Node,
    Scalar,
    Sequence,
    parse,
    read_file,
)
from scplan.errors import SourceRange


def plain(node: Node | None) -> object:
    """The node as Python values; scalars as texts, null as None."""
    if node is None:
        return "nothing"
    if isinstance(node, Scalar):
        return None if node.is_null else node.text
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, value in node.entries.items()}


def read(text: str | bytes) -> Document:
    return parse(text.encode() if isinstance(text, str) else text, "a.yaml")


def value(text: str) -> object:
    document = read(text)
    assert document.problems == ()
    return plain(document.root)


def problem(text: str | bytes) -> str:
    document = read(text)
    assert document.problems
    return str(document.problems[0])


def at(node: Node | None, *path: str | int) -> Node:
    """The node at a path of keys and indexes."""
    for step in path:
        if isinstance(node, Mapping):
            node = node.entries[str(step)]
        else:
            assert isinstance(node, Sequence)
            node = node.items[int(step)]
    assert node is not None
    return node


@pytest.mark.parametrize(
    "text", ["10:20:30:40:50:55", "0660", "1", "yes", "1_000", "2024-01-01", "0x1f", ".inf", "1e3"]
)
def test_scalars_keep_their_text(text: str) -> None:
    assert value(f"a: {text}") == {"a": text}


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_plain_nulls_are_null(text: str) -> None:
    assert value(f"a: {text}") == {"a": None}


@pytest.mark.parametrize("text", ['"null"', "'~'", '""', "!!str null"])
def test_quoted_nulls_are_texts(text: str) -> None:
    assert value(f"a: {text}") != {"a": None}


def test_every_node_knows_its_place() -> None:
    root = read("a:\n  - b\n  - {c: d}\n").root
    assert at(root, "a", 0).source == SourceRange("a.yaml", 2, 5)
    assert at(root, "a", 1, "c").source == SourceRange("a.yaml", 3, 9)
    assert isinstance(root, Mapping)
    assert [mark.line for _, mark, _ in root.items() if mark] == [0]


def test_columns_count_characters_and_not_bytes() -> None:
    assert at(read("ä€: x\n").root, "ä€").source == SourceRange("a.yaml", 1, 5)


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert value("\ufeffa: b") == {"a": "b"}


def test_aliases_stand_for_their_anchor() -> None:
    assert value("x-a: &a [1, 2]\nb: *a\nc: [*a]") == {"x-a": ["1", "2"], "b": ["1", "2"], "c": [["1", "2"]]}


def test_an_anchor_may_be_defined_again() -> None:
    assert value("a: &a 1\nb: *a\nc: &a 2\nd: *a") == {"a": "1", "b": "1", "c": "2", "d": "2"}


def test_own_keys_win_over_merged_ones_and_the_first_merge_over_the_second() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz:\n  <<: [*x, *y]\n  a: 0"
    assert value(text)["z"] == {"a": "0", "b": "1", "c": "2"}  # type: ignore[index]


def test_a_merged_key_is_where_it_was_written() -> None:
    root = read("x: &x {a: 1}\nz:\n  b: 2\n  <<: *x\n").root
    merged = at(root, "z")
    assert isinstance(merged, Mapping)
    assert [(key, mark.line) for key, mark, _ in merged.items() if mark] == [("b", 2), ("a", 0)]
    mark = merged.key_mark("a")
    assert mark is not None
    assert mark.column == 7


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert value('"<<": {a: 1}') == {"<<": {"a": "1"}}


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", ["duplicate key", "line 3", "line 1"]),
        ("a: [1\nb: 2\n", "2:", ["malformed"]),
        ("a:\n\tb: 1\n", "2:1", ["malformed", "spaces"]),
        ("a: !!python/object:os.system x", "1:4", ["unknown tag"]),
        ("a: !mine x", "1:4", ["unknown tag", "!mine"]),
        ("a: !!binary aGk=", "1:4", ["unknown tag"]),
        ("a: !!set {x}", "1:4", ["unknown tag"]),
        ("a: &a [*a]", "1:8", ["endless alias"]),
        ("a: &a\n  b: *a", "2:6", ["endless alias"]),
        ("a: *b", "1:4", ["unknown alias", "&b"]),
        ("? [a]\n: b", "1:3", ["unsuitable key"]),
        ("{a: b}: c", "1:1", ["unsuitable key"]),
        ("a: 1\n---\nb: 2\n", "2:1", ["more than one document"]),
        ("", "1:1", ["empty file", "version: 1"]),
        ("# nothing\n", "1:1", ["empty file"]),
        ("a:\n  <<: 5\n", "2:7", ["unsuitable merge"]),
        ("a: @b", "1:4", ["malformed", "quotes"]),
        ("a: b: c", "1:", ["malformed"]),
        ("%YAML 3.0\n---\na: b", "1:1", ["malformed"]),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, where: str, words: list[str]) -> None:
    message = problem(text)
    assert message.startswith(f"a.yaml:{where}")
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("data", "where", "words"),
    [
        (b"a: 1\nb: \xff\n", "2:4", "0xff is not UTF-8"),
        (b"a: 1\nb: x\x00y\n", "2:5", "U+0000"),
        ("ä: \x1b[31m".encode(), "1:4", "U+001B"),
        (b"\xff\xfea\x00", "1:1", "UTF-16"),
        (b"a: \xed\xa0\x80", "1:4", "not UTF-8"),
    ],
)
def test_bytes_that_are_no_text_are_refused(data: bytes, where: str, words: str) -> None:
    message = problem(data)
    assert message.startswith(f"a.yaml:{where}: ")
    assert words in message


def test_all_duplicate_keys_and_tags_are_said_at_once() -> None:
    assert len(read("a: 1\na: 2\nb: !x 3\na: 4\n").problems) == 3


def test_problems_of_one_file_are_bounded() -> None:
    document = read("".join("a: !x 1\n" for _ in range(1000)))
    assert document.root is None
    assert "too many errors" in str(document.problems[-1])


@pytest.mark.parametrize("form", ["[", "{a: ", "- ", "? ", "!!seq [", "&a ["])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5_000])
def test_deep_nesting_ends_with_an_error(form: str, depth: int) -> None:
    message = problem(form * depth + "x")
    assert "nested too deeply" in message or "malformed" in message or "unsuitable key" in message


def test_nesting_up_to_the_bound_is_read() -> None:
    assert read("[" * MAX_DEPTH + "]" * MAX_DEPTH).problems == ()


def test_an_alias_bomb_is_refused_before_it_expands() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 20)]
    assert "too many values" in problem("\n".join(lines))


def test_a_merge_bomb_is_refused() -> None:
    wide = "x: &x {" + ", ".join(f"k{number}: 1" for number in range(2000)) + "}\n"
    assert "too many values" in problem(wide + "y:\n" + "  - {<<: *x}\n" * 3000)


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    assert "none.yaml: No such file or directory" in str(read_file(str(tmp_path / "none.yaml")).problems[0])


def test_a_directory_is_not_read_as_a_file(tmp_path: Path) -> None:
    assert "Is a directory" in str(read_file(str(tmp_path)).problems[0])


@pytest.mark.timeout(10)
def test_a_fifo_without_a_writer_does_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    assert "not a regular file" in str(read_file(str(fifo)).problems[0])


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/full"])
def test_a_device_is_not_read(path: str) -> None:
    assert "not a regular file" in str(read_file(path).problems[0])


def test_a_file_past_the_size_bound_is_refused(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    with big.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert "at most 16 MiB" in str(read_file(str(big)).problems[0])


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "", "\udcff.yaml"])
def test_a_path_that_is_none_is_an_error(path: str) -> None:
    problems = read_file(path).problems
    assert problems
    str(problems[0]).encode()


def test_a_path_with_control_characters_is_escaped_in_messages(tmp_path: Path) -> None:
    assert "\x1b" not in str(read_file(str(tmp_path / "\x1b[31m.yaml")).problems[0])


def test_standard_input_is_read_for_a_dash() -> None:
    code = "from scplan.config.yaml_source import read_file; d = read_file('-'); print(d.root.entries['a'].source)"
    result = subprocess.run([sys.executable, "-c", code], input=b"a: b\n", capture_output=True, check=True)
    assert result.stdout == b"<stdin>:1:4\n"


def test_a_closed_standard_input_is_an_error() -> None:
    code = "import os; os.close(0)\nfrom scplan.config.yaml_source import read_file; print(read_file('-').problems[0])"
    result = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert b"Bad file descriptor" in result.stdout

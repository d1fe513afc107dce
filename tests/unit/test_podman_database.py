"""Labels of podman's containers, from databases as BoltDB and SQLite write them."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from scplan.errors import RecordDamaged
from scplan.runtimes.podman_database import labels_in

SIZE = os.sysconf("SC_PAGE_SIZE")
BRANCH, LEAF, META, BUCKET = 1, 2, 4, 1
IDS = [f"{number:02x}" * 32 for number in range(60)]


def config(number: int) -> bytes:
    return json.dumps({"id": IDS[number], "labels": {"app": f"web-{number}", "x": "a=b"}, "filler": "f" * 200}).encode()


def page(number: int, flags: int, elements: list[tuple[bytes, bytes, bytes]], *, size: int = SIZE) -> bytes:
    """A page of (element without the position of its text, key, value); what does not fit is on the pages after it."""
    heads, texts = b"", b""
    width = 16
    for index, (head, key, value) in enumerate(elements):
        position = (len(elements) - index) * width + len(texts)
        heads += (
            head[:4] + struct.pack("<I", position) + head[4:] if flags & LEAF else struct.pack("<I", position) + head
        )
        texts += key + value
    body = heads + texts
    overflow = (16 + len(body) - 1) // size if size else 0
    text = struct.pack("<QHHI", number, flags, len(elements), overflow) + body
    return text.ljust((overflow + 1) * size, b"\0") if size else text


def leaf(number: int, entries: Mapping[bytes, tuple[int, bytes]], *, size: int = SIZE) -> bytes:
    return page(
        number,
        LEAF,
        [
            (struct.pack("<I", flags) + struct.pack("<II", len(key), len(value)), key, value)
            for key, (flags, value) in sorted(entries.items())
        ],
        size=size,
    )


def branch(number: int, children: list[tuple[bytes, int]]) -> bytes:
    return page(number, BRANCH, [(struct.pack("<IQ", len(key), child), key, b"") for key, child in children])


def meta(number: int, root: int, transaction: int) -> bytes:
    body = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, SIZE, 0, root, 0, 2, 99, transaction)
    checksum = 0xCBF29CE484222325
    for byte in body:
        checksum = (checksum ^ byte) * 0x100000001B3 % (1 << 64)
    return (struct.pack("<QHHI", number, META, 0, 0) + body + struct.pack("<Q", checksum)).ljust(SIZE, b"\0")


@pytest.fixture
def bolt(tmp_path: Path) -> Path:
    """A file with 60 containers in three leaves below a branch; some are within the pages of their bucket."""
    leaves = []
    for first, number in ((0, 6), (20, 7), (40, 8)):
        entries = {}
        for index in range(first, first + 20):
            inline = leaf(0, {b"config": (0, config(index)), b"state": (0, b"{}")}, size=0)
            entries[IDS[index].encode()] = (BUCKET, struct.pack("<QQ", 0, 0) + inline)
        leaves.append((number * 10, leaf(number * 10, entries)))
    root = leaf(3, {b"ctr": (BUCKET, struct.pack("<QQ", 4, 0)), b"pod": (BUCKET, struct.pack("<QQ", 5, 0))})
    ctr = branch(4, [(IDS[first].encode(), number * 10) for first, number in ((0, 6), (20, 7), (40, 8))])
    pages = {0: meta(0, 9, 6), 1: meta(1, 3, 7), 3: root, 4: ctr, 5: leaf(5, {}), **dict(leaves)}
    path = tmp_path / "libpod/bolt_state.db"
    path.parent.mkdir()
    with path.open("wb") as file:
        for number, text in pages.items():
            file.seek(number * SIZE)
            file.write(text)
    return path


@pytest.mark.usefixtures("bolt")
@pytest.mark.parametrize("number", [0, 19, 20, 39, 59])
def test_labels_are_found_below_a_branch_by_the_last_transaction(number: int, tmp_path: Path) -> None:
    assert labels_in(str(tmp_path), IDS[number]) == (f"app=web-{number}", "x=a=b")


@pytest.mark.usefixtures("bolt")
def test_container_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert labels_in(str(tmp_path), "ff" * 32) is None
    assert labels_in(f"{tmp_path}/other", IDS[0]) is None


@pytest.mark.parametrize("page_number", [1, 3, 4, 60])
def test_damaged_file_is_refused_by_name(page_number: int, bolt: Path, tmp_path: Path) -> None:
    with bolt.open("r+b") as file:
        file.seek(page_number * SIZE + 8)
        file.write(b"\xff" * 100)
    with pytest.raises(RecordDamaged, match="bolt_state"):
        labels_in(str(tmp_path), IDS[1])


@pytest.mark.parametrize("text", [b"", b"x", b"\0" * 3 * SIZE], ids=["empty", "short", "zeros"])
def test_file_that_is_none_is_refused_by_name(text: bytes, bolt: Path, tmp_path: Path) -> None:
    bolt.write_bytes(text)
    with pytest.raises(RecordDamaged, match="bolt_state"):
        labels_in(str(tmp_path), IDS[1])


@pytest.mark.parametrize("place", ["db.sql", "libpod/db.sql"])
def test_sqlite_has_them_since_podman_4_8(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE ContainerConfig(ID TEXT PRIMARY KEY, Name TEXT, PodID TEXT, JSON TEXT NOT NULL)")
        database.execute("INSERT INTO ContainerConfig VALUES (?, 'web', NULL, ?)", (IDS[3], config(3).decode()))
    assert labels_in(str(tmp_path), IDS[3]) == ("app=web-3", "x=a=b")
    assert labels_in(str(tmp_path), IDS[4]) is None
    path.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(RecordDamaged, match=r"db\.sql"):
        labels_in(str(tmp_path), IDS[3])

"""Labels of podman's containers, which only podman's database has: BoltDB, or SQLite since podman 4.8.

Read without a lock: podman takes an exclusive lock for each operation, and would wait for scplan's. BoltDB does not
overwrite a page of a transaction before the second transaction after it.
Sources: podman's libpod/boltdb_state.go and sqlite_state.go; page.go, bucket.go and db.go of go.etcd.io/bbolt.
"""

from __future__ import annotations

import os
import struct

from scplan.errors import KernelError, RecordDamaged
from scplan.runtimes.state_files import MAX_STATE_BYTES, damaged, labels_of
from scplan.startup import strict_json

_BOLT, _SQLITE = "libpod/bolt_state.db", ("db.sql", "libpod/db.sql")
_PATH = (b"ctr",)
_CONFIG = b"config"
_ATTEMPTS = 10
_MAGIC, _VERSION = 0xED0CDAED, 2
_FNV_BASIS, _FNV_PRIME, _64_BITS = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1
_PAGE = struct.Struct("<QHHI")
"""ID, flags, number of elements, number of pages that it goes on for."""
_META = struct.Struct("<IIIIQQQQQQ")
"""Magic, version, page size, flags, root, sequence, freelist, end, transaction, checksum of what is before it."""
_BRANCH_ELEMENT, _LEAF_ELEMENT, _BUCKET = struct.Struct("<IIQ"), struct.Struct("<IIII"), struct.Struct("<QQ")
_IS_BRANCH, _IS_LEAF, _IS_BUCKET = 0x01, 0x02, 0x01
_MAX_DEPTH = 32


def labels_in(storage: str, container_id: str) -> tuple[str, ...] | None:
    """Labels of a container, as KEY=VALUE; None if no database in the storage has the container."""
    bolt = f"{storage}/{_BOLT}"
    text = _in_bolt(bolt, container_id)
    if text is not None:
        return _labels(text, bolt)
    for path in (f"{storage}/{name}" for name in _SQLITE):
        text = _in_sqlite(path, container_id)
        if text is not None:
            return _labels(text, path)
    return None


def _labels(text: bytes, path: str) -> tuple[str, ...]:
    try:
        document = strict_json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise damaged(path, "the configuration of a container is not a JSON object")
    return labels_of(document.get("labels"))


def _in_sqlite(path: str, container_id: str) -> bytes | None:
    if not os.path.isfile(path):
        return None
    import sqlite3
    from contextlib import closing
    from urllib.parse import quote

    try:
        # mode=ro: the file is neither created nor changed. sqlite.org/uri.html
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as database:
            row = database.execute("SELECT JSON FROM ContainerConfig WHERE ID = ?", (container_id,)).fetchone()
    except sqlite3.Error as error:
        raise RecordDamaged(f"{path} can't be read", detail=str(error), hint="ask podman about it") from None
    return row[0].encode() if row is not None and isinstance(row[0], str) else None


def _in_bolt(path: str, container_id: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError.from_os(f"open({path})", error) from None
    try:
        for _ in range(_ATTEMPTS):
            found = _Bolt(fd, path)
            try:
                text = found.value(container_id.encode())
            except (RecordDamaged, struct.error):
                if found.is_current():
                    raise damaged(path, "it is no BoltDB file") from None
                continue
            if found.is_current():
                return text
    except OSError as error:
        raise KernelError.from_os(f"read({path})", error) from None
    finally:
        os.close(fd)
    raise damaged(path, f"it changed {_ATTEMPTS} times while it was read")


class _Bolt:
    """A BoltDB file as of its last transaction."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd, self._path = fd, path
        self._page_size, self._root, self._transaction = self._last()

    def is_current(self) -> bool:
        """True if no page of the transaction can have been overwritten."""
        return self._last()[2] <= self._transaction + 1

    def value(self, container_id: bytes) -> bytes | None:
        """Configuration of a container: key `config` in bucket `ctr`/ID; None if it is absent."""
        page = self._read(self._root)
        for name in (*_PATH, container_id):
            found = self._find(page, name)
            if found is None or not found[0] & _IS_BUCKET:
                return None
            root, _ = _BUCKET.unpack_from(found[1])
            # Root 0: a small bucket is inline, with its only page behind the bucket's header.
            page = self._read(root) if root else found[1][_BUCKET.size :]
        config = self._find(page, _CONFIG)
        return None if config is None else config[1]

    def _last(self) -> tuple[int, int, int]:
        """(page size, root, transaction) of the last complete transaction."""
        written: list[tuple[int, int, int]] = []
        # Transactions use the first two pages in turn. BoltDB's pages have the size of memory pages.
        for offset in (0, os.sysconf("SC_PAGE_SIZE")):
            text = os.pread(self._fd, _META.size, offset + _PAGE.size)
            if len(text) == _META.size:
                magic, version, size, _, root, _, _, _, transaction, checksum = _META.unpack(text)
                if (magic, version, checksum) == (_MAGIC, _VERSION, _fnv(text[:-8])):
                    written.append((size, root, transaction))
        if not written:
            raise damaged(self._path, "it is no BoltDB file")
        return max(written, key=lambda one: one[2])

    def _read(self, number: int) -> bytes:
        """A page with its overflow pages."""
        head = os.pread(self._fd, _PAGE.size, number * self._page_size)
        if len(head) < _PAGE.size:
            raise damaged(self._path, f"it ends before page {number}")
        size = (_PAGE.unpack(head)[3] + 1) * self._page_size
        if size > MAX_STATE_BYTES:
            raise damaged(self._path, f"page {number} is too long")
        return os.pread(self._fd, size, number * self._page_size)

    def _find(self, page: bytes, key: bytes) -> tuple[int, bytes] | None:
        """(flags, value) of a key in the tree below a page; None if the tree does not have the key."""
        for _ in range(_MAX_DEPTH):
            _, flags, count, _ = _PAGE.unpack_from(page)
            if flags & _IS_LEAF:
                return _in_leaf(page, count, key)
            if not flags & _IS_BRANCH or not count:
                break
            page = self._read(_child_in(page, count, key))
        raise damaged(self._path, "a page is neither branch nor leaf")


def _in_leaf(page: bytes, count: int, key: bytes) -> tuple[int, bytes] | None:
    for at in range(_PAGE.size, _PAGE.size + count * _LEAF_ELEMENT.size, _LEAF_ELEMENT.size):
        flags, position, key_size, value_size = _LEAF_ELEMENT.unpack_from(page, at)
        start = at + position
        if page[start : start + key_size] == key:
            return flags, page[start + key_size : start + key_size + value_size]
    return None


def _child_in(page: bytes, count: int, key: bytes) -> int:
    """Number of the child page for the key: the last page whose first key is not greater, else the first page."""
    child = 0
    for at in range(_PAGE.size, _PAGE.size + count * _BRANCH_ELEMENT.size, _BRANCH_ELEMENT.size):
        position, size, number = _BRANCH_ELEMENT.unpack_from(page, at)
        if at > _PAGE.size and page[at + position : at + position + size] > key:
            break
        child = number
    return child


def _fnv(text: bytes) -> int:
    """FNV-1a hash of 64 bits."""
    value = _FNV_BASIS
    for byte in text:
        value = (value ^ byte) * _FNV_PRIME & _64_BITS
    return value

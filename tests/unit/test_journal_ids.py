"""IDs of applies: their order is that of the history, whatever the clock says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from scplan.store.durable import encode_line
from scplan.store.journal import HISTORY_KEPT, new_apply_id, retire


@pytest.mark.slow
def test_they_sort_as_they_were_made(tmp_path: Path) -> None:
    """Also around the full second, at which the coarse clock lags behind the fine one."""
    until = time.time() + 1.2
    last = ""
    while time.time() < until:
        made = new_apply_id(str(tmp_path))
        assert made > last
        last = made


def test_they_sort_after_the_history_when_the_clock_was_set_back(tmp_path: Path) -> None:
    history = tmp_path / "history"
    history.mkdir()
    (history / "29991231T235959.999999999-17.jsonl").touch()
    (history / "notes.txt").touch()
    made = new_apply_id(str(tmp_path))
    assert made == f"30000101T000000.000000000-{os.getpid()}"
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / f"{made}-start.jsonl").touch()
    assert new_apply_id(str(tmp_path)) == f"30000101T000000.000000001-{os.getpid()}"


def test_what_only_looks_like_an_id_does_not_count(tmp_path: Path) -> None:
    history = tmp_path / "history"
    history.mkdir()
    for name in ("29991331T235959.999999999-17", "99999999T999999.999999999-1", "29991231T235959.9-17"):
        (history / f"{name}.jsonl").touch()
    assert new_apply_id(str(tmp_path)) < "2999"
    (history / "29981231T235959.000000000-17.jsonl").touch()
    assert new_apply_id(str(tmp_path)) == f"29981231T235959.000000001-{os.getpid()}"


def ended(directory: Path, number: int, ending: str) -> str:
    path = directory / "journal" / f"20260101T000000.{number:09d}-17.jsonl"
    path.write_bytes(encode_line({"entry": "begin"}) + encode_line({"entry": ending, "reason": "x" * 500}))
    retire(str(path))
    return path.name


def test_last_committed_apply_is_kept_however_many_failed_since(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    history = tmp_path / "history"
    first, last = ended(tmp_path, 1, "committed"), ended(tmp_path, 2, "committed")
    failed = [ended(tmp_path, number, "rolled_back") for number in range(3, HISTORY_KEPT + 30)]
    assert sorted(path.name for path in history.iterdir()) == [last, *failed[-HISTORY_KEPT:]]
    assert first not in failed
    newest = ended(tmp_path, 1000, "committed")
    assert sorted(path.name for path in history.iterdir()) == [*failed[1 - HISTORY_KEPT :], newest]

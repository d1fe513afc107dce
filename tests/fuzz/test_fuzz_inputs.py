"""Whatever scplan is given to read: a value or a documented error, in bounded time and memory. Cases are counted."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz.mutation import mutated, substituted
from tests.fuzz.targets import TARGETS, Target
from tests.tried import TRIED

CASES = int(os.environ.get("SCPLAN_FUZZ_CASES", "300"))
SLOWEST_S = 5.0
"""Far above what any case takes; below it a slow machine is no failure."""


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_or_understood(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    assert "valid" in [run(name, target, data, tmp_path, seed) for data in target.seeds]
    for number in range(CASES):
        grown = chance.choice(target.seeds)
        if number % 8 == 0:
            grown = chance.randbytes(chance.randrange(300))
        run(name, target, mutated(grown, chance), tmp_path, seed)


JSON = (
    "ovsdb answers",
    "journal documents",
    "record documents",
    "plan files",
    "snapshots",
    "runtime states",
    "engine states",
)


@pytest.mark.parametrize("name", JSON)
def test_any_value_in_any_place_is_refused_or_understood(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        for number, data in enumerate(substituted(seed)):
            run(name, target, data, tmp_path, number)


def run(name: str, target: Target, data: bytes, scratch: Path, seed: int) -> str:
    begun = time.monotonic()
    try:
        ended = target.run(data, scratch)
    except BaseException:
        print(f"{name}, seed {seed}: {data!r}")
        raise
    assert time.monotonic() - begun < SLOWEST_S, data[:300]
    TRIED[f"fuzzed {name}"][ended] += 1
    return ended


FILES = ("journals", "records", "plan files", "snapshots", "runtime states", "engine states", "ovsdb answers")
BOMBS = {
    "deep arrays": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "closed deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "a long number": b'{"format_version":"1.0","pid":' + b"9" * 1_000_000 + b"}",
    "a huge exponent": b'{"format_version":"1.0","pid":1e999999999}',
    "blanks": b" " * 4_000_000,
    "many keys": b"{" + b",".join(b'"%d":0' % number for number in range(50_000)) + b"}",
    "many lines": b"{}\n" * 200_000,
    "one long text": b'{"format_version":"' + b"1" * 4_000_000 + b'"}',
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", FILES)
def test_bombs_are_refused_within_bounds(name: str, bomb: str, tmp_path: Path) -> None:
    data = BOMBS[bomb]
    tracemalloc.start()
    try:
        ended = run(name, TARGETS[name], data, tmp_path, 0)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ended == "refused"
    assert peak_bytes < 40 * len(data) + (16 << 20)


# what fuzzing found


def test_deep_state_of_a_runtime_is_refused(tmp_path: Path) -> None:
    assert TARGETS["runtime states"].run(b'{"id":' + b"[" * 5000, tmp_path) == "refused"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"uplinks": []', b'"uplinks": 7'),
        (b'"ovs_bridges": []', b'"ovs_bridges": [1]'),
        (b'"10.20.30.5/24"', b'"10.20.300.5/24"'),
        (b'"via": "10.20.30.1"', b'"via": "gateway"'),
    ],
)
def test_snapshot_with_values_that_nobody_can_compute_with_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    target = TARGETS["snapshots"]
    (good,) = target.seeds
    assert old in good
    assert target.run(good.replace(old, new), tmp_path) == "refused"

"""What a dead scplan leaves in its state directory: journals cut anywhere, of another boot, and files half written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scplan.store.durable import decode_line, encode_line
from tests.containers.fingerprint import Fingerprint, difference
from tests.containers.session import Session
from tests.crash.scene import Scene, open_scene
from tests.crash.tracer import Call, Death

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1", "userns", "veth", "bridge", "loop", "x86_64")


@pytest.fixture(scope="module")
def scene(session: Session) -> Iterator[Scene]:
    with open_scene(session) as opened:
        opened.done("apply", "--auto-approve", "-f", opened.first)
        yield opened


@pytest.fixture
def before(scene: Scene) -> Iterator[Fingerprint]:
    """The first configuration; each test leaves it so."""
    picture = scene.picture()
    yield picture
    assert difference(picture, scene.picture()) == []


def crash(scene: Scene, at: Callable[[Call], bool]) -> Path:
    """The journal of an apply of the second configuration that died at the first such call."""
    decided: list[Call] = []

    def decide(call: Call) -> Death | None:
        if decided or not at(call):
            return None
        decided.append(call)
        return Death.OF_ALL

    ran = scene.run("apply", "--auto-approve", "-f", scene.second, decide=decide)
    assert ran.code is None
    (journal,) = (scene.state_dir / "journal").glob("*.jsonl")
    return journal


def late(call: Call) -> bool:
    """In the child that mounts, when most is done."""
    return call.name == "mknodat" and call.process > 0


@pytest.mark.usefixtures("before")
def test_journal_torn_in_any_part_of_its_last_line_is_recovered(scene: Scene) -> None:
    # Killed while it writes the line: the operation that it announces was not begun.
    journal = crash(scene, late)
    content = journal.read_bytes()
    scene.done("recover")
    lines = content.splitlines(keepends=True)
    for length in (1, 8, 9, 40, len(lines[0]) // 2):
        journal.write_bytes(lines[0] + lines[1][:length])
        scene.done("recover")
        assert not journal.exists()


@pytest.mark.usefixtures("before")
def test_journal_damaged_in_any_line_is_named_and_its_way_out_works(scene: Scene) -> None:
    journal = crash(scene, late)
    good = journal.read_bytes()
    lines = good.splitlines(keepends=True)
    damaged = {
        "empty": b"",
        "garbage": b"\0\xff garbage\n",
        "a line is missing its end": b"".join([lines[0], lines[1][:50], b"\n", *lines[2:]]),
        "one bit": bytes([good[0] ^ 1]) + good[1:],
        "newer": encode_line(decode_line(lines[0], "") | {"format_version": "2.0"}) + b"".join(lines[1:]),
    }
    for what, content in damaged.items():
        journal.write_bytes(content)
        for option in ((), ("--forward",), ("--back",)):
            ran = scene.run("recover", *option)
            assert (ran.code, str(journal) in ran.output) == (1, True), f"{what}: {ran}"
            assert "restore it from a backup" in ran.output or "newer" in ran.output, f"{what}: {ran}"
        assert scene.run("apply", "--auto-approve", "-f", scene.second).code == 8
        assert journal.read_bytes() == content
    journal.write_bytes(good)
    scene.done("recover")


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("option", [(), ("--back",), ("--forward",)])
def test_nothing_is_undone_of_an_apply_before_the_last_boot(scene: Scene, option: tuple[str, ...]) -> None:
    journal = crash(scene, lambda call: call.name == "mknodat")
    good = journal.read_bytes()
    lines = good.splitlines(keepends=True)
    half_done = scene.picture()
    journal.write_bytes(encode_line(decode_line(lines[0], "") | {"boot_id": "another"}) + b"".join(lines[1:]))
    assert "0 operations undone" in scene.done("recover", *option).output
    assert difference(_without_journals(half_done), scene.picture()) == []
    journal.write_bytes(good)
    scene.done("recover")


def _without_journals(picture: Fingerprint) -> Fingerprint:
    records = {name: said for name, said in picture["records"].items() if not name.endswith(".jsonl")}
    return {**picture, "records": records}


@pytest.mark.usefixtures("before")
def test_what_killed_runs_left_half_written_is_taken_away(scene: Scene) -> None:
    journal = crash(scene, late)
    (record, *_) = scene.state_dir.glob("containers/*/*.json")
    leftovers = [
        record.with_name(f"{record.name}.tmp"),
        record.with_name(f"{record.name}.tmp.previous"),
        journal.with_name("20200101T000000.000000000-1.jsonl.tmp"),
    ]
    for path in leftovers:
        path.write_text("half")
    scene.done("recover")
    assert [path for path in leftovers if path.exists()] == []


@pytest.mark.usefixtures("before")
def test_new_plan_takes_away_what_a_dead_writer_left_beside_it(scene: Scene) -> None:
    plan = scene.directory / "web.plan"
    dead, own = (scene.directory / f"web.plan.{pid}.tmp" for pid in (4194305, 1))
    dead.write_text("half")
    own.write_text("of a process that lives")
    scene.done("plan", "-f", scene.second, "--out", str(plan))
    assert (plan.exists(), dead.exists(), own.exists()) == (True, False, True)

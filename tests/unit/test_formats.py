"""The versioned formats of state/: files of every released version still load, and their schemas describe them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scplan.errors import RecordDamaged
from scplan.kinds import KINDS
from scplan.kinds.cgroup import CgroupSetting
from scplan.kinds.device import Device, IoLimits
from scplan.kinds.mount import BindMount
from scplan.kinds.nic.record import Nic
from scplan.kinds.route import Route
from scplan.model.address import Address
from scplan.model.change import Action
from scplan.model.live import Status
from scplan.model.resource import Resource, brought_by
from scplan.store import saved_plans, snapshot
from scplan.store.durable import encode_line
from scplan.store.journal import Entries, read_journal
from scplan.store.state import Record, State

STATE = Path(__file__).parents[2] / "state"
GOLDEN = STATE / "golden"
SCHEMAS = sorted(path.name for path in (STATE / "schemas").iterdir())
V1, V1_1 = GOLDEN / "1.0", GOLDEN / "1.1"

ROUTE = Route(to="default", via="10.20.30.1", metric=0, table=254)
LIMIT = CgroupSetting(name="memory.max", value="67108864", former="max")


def address(text: str) -> Address:
    return Address.parse(text)


# schemas


def documents(path: Path) -> Iterator[tuple[str, Any]]:
    """(name of its schema, document) of everything in a golden file; checksums are left to the readers under test."""
    if path.suffix == ".jsonl":
        yield from (("journal", json.loads(line.partition(" ")[2])) for line in path.read_text().splitlines())
    elif path.stem == "record":
        yield "record", json.loads(path.read_text().partition(" ")[2])
    else:
        yield path.stem, json.loads(path.read_text())


def validator(version: str, name: str) -> Any:
    import jsonschema
    from referencing import Registry, Resource

    # Within a major version keys are only added: one schema describes all its minor versions.
    directory = STATE / "schemas" / f"{version.partition('.')[0]}.0"
    schemas = {path.name: json.loads(path.read_text()) for path in directory.iterdir()}
    found = [Resource.from_contents(schema) for schema in schemas.values()]
    registry: Registry[Any] = Registry().with_resources((resource.id() or "", resource) for resource in found)
    return jsonschema.Draft202012Validator(schemas[f"{name}.schema.json"], registry=registry)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_golden_file_is_as_its_schema_says(path: Path) -> None:
    for name, document in documents(path):
        problems = [error.message for error in validator(path.parent.name, name).iter_errors(document)]
        assert problems == []


@pytest.mark.parametrize("version", SCHEMAS)
def test_schemas_are_schemas(version: str) -> None:
    import jsonschema

    for path in (STATE / "schemas" / version).iterdir():
        jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_schemas_tell_wrong_documents_from_right_ones() -> None:
    record = dict(documents(V1 / "record.json"))["record"]
    check = validator("1.0", "record")
    assert check.is_valid(record)
    assert not check.is_valid({**record, "format_version": "2.0"})
    assert not check.is_valid({**record, "resources": {"nic/eth1": {"name": 1}}})
    assert not check.is_valid({**record, "resources": {"printer/lp0": {}}})
    assert check.is_valid({**record, "added_by_a_newer_minor_version": True})


# records


def record_at(directory: Path, content: bytes) -> State:
    """A state directory with this record of container web."""
    path = directory / "containers/process/web.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return State(str(directory), KINDS)


def test_record_of_1_0_loads(tmp_path: Path) -> None:
    record = record_at(tmp_path, (V1 / "record.json").read_bytes()).read("process", "web")
    assert isinstance(record, Record)
    assert (record.name, record.runtime, record.id) == ("web", "process", "pid:1924")
    assert dict(record.resources) == {
        address("web/device/dev/data"): Device(
            source="/dev/loop3",
            target="/dev/data",
            permissions="rw",
            io=IoLimits(read_bps=10485760, write_iops=500),
            file_type="block",
            numbers="7:3",
            prior_access="",
            prior_limits="0 0 0 0 0",
            made=(),
        ),
        address("web/nic/eth1"): nic("10.20.30.5/24", "fd00:20::5/64"),
        address("web/route/default"): ROUTE,
        address("web/mount/srv/data"): BindMount(
            source="/tmp/sct-1gp-files/sct-1gp-6wi0d",
            target="/srv/data",
            read_only=True,
            source_identity="65024:2183203",
            made=("/srv/data",),
            made_source=(),
        ),
        address("web/cgroup/memory.max"): LIMIT,
    }


def test_record_of_1_1_says_what_a_start_needs(tmp_path: Path) -> None:
    record = record_at(tmp_path, (V1_1 / "record.json").read_bytes()).read("process", "web")
    assert isinstance(record, Record)
    assert (record.modules, record.pid, record.start_time) == (("kernel",), 14099, 1779947)
    assert record.boot_id
    brought = {str(one): brought_by(resource) for one, resource in record.resources.items()}
    assert brought == {"web/device/dev/data": None, "web/device/dev/data1": "dev/data", "web/cgroup/pids.max": None}


def nic(*addresses: str, **more: object) -> Nic:
    values: dict[str, Any] = {"type": "veth", "host_name": "web-eth1", "bridge": "br0", "mtu": 1400, "up": True}
    return Nic(name="eth1", addresses=addresses, **values, **more)


def test_record_that_is_written_again_says_the_same(tmp_path: Path) -> None:
    state = record_at(tmp_path, (V1 / "record.json").read_bytes())
    record = state.read("process", "web")
    assert record is not None
    assert (record.boot_id, record.start_time) == ("", 0), "which 1.0 did not keep"
    state.prepare([record]).commit()
    assert state.read("process", "web") == record


def test_damaged_record_is_refused(tmp_path: Path) -> None:
    content = (V1 / "record.json").read_bytes().replace(b"10.20.30.5", b"10.20.30.6")
    with pytest.raises(RecordDamaged, match="checksum"):
        record_at(tmp_path, content).read("process", "web")


# journals


def journal(name: str) -> Entries:
    entries = read_journal(str(V1 / name), KINDS)
    assert entries is not None
    return entries


def test_journal_of_1_0_that_was_committed_loads() -> None:
    entries = journal("journal-first-apply.jsonl")
    facts = entries.begin.containers["web"]
    assert (entries.begin.user, facts.runtime, facts.status, facts.pid) == ("operator", "process", Status.RUNNING, 1924)
    assert (entries.applied, entries.ending, entries.undone, dict(entries.refreshed)) == (
        True,
        "committed",
        frozenset(),
        {},
    )
    made = [(number, str(one.address), one.action) for number, one in sorted(entries.started.items())]
    assert made == [
        (1, "web/device/dev/data", Action.CREATE),
        (2, "web/nic/eth1", Action.CREATE),
        (3, "web/route/default", Action.CREATE),
        (4, "web/mount/srv/data", Action.CREATE),
        (5, "web/cgroup/memory.max", Action.CREATE),
    ]
    limit = entries.started[5]
    assert (limit.before, limit.after, limit.owned_before, limit.owned_after) == (None, LIMIT, None, LIMIT)


def test_journal_of_1_0_holds_a_replacement_as_two_operations() -> None:
    entries = journal("journal-committed.jsonl")
    made = [(one.order, str(one.address), one.action) for _, one in sorted(entries.started.items())]
    assert made == [
        (2, "web/route/default", Action.DELETE),
        (1, "web/nic/eth1", Action.UPDATE),
        (2, "web/route/default", Action.CREATE),
        (3, "web/mount/srv/www", Action.CREATE),
        (4, "web/cgroup/memory.max", Action.DELETE),
        (5, "web/mount/srv/data", Action.DELETE),
    ]
    assert entries.started[1].before == ROUTE.replace(dev="eth1", onlink=False, protocol=4)
    assert entries.started[1].owned_before == entries.started[3].owned_after == ROUTE


def test_journal_of_1_0_that_was_rolled_back_loads() -> None:
    entries = journal("journal-rolled-back.jsonl")
    assert (entries.applied, entries.ending, entries.undone) == (False, "rolled_back", frozenset({1, 2, 3}))
    assert list(entries.started) == [1, 2, 3]


def test_journal_of_1_0_that_a_crash_left_loads() -> None:
    entries = journal("journal-crashed.jsonl")
    assert (entries.applied, entries.ending, entries.undone) == (False, None, frozenset())
    deletion, update = entries.started[1], entries.started[2]
    assert (deletion.action, update.action) == (Action.DELETE, Action.UPDATE)
    assert update.owned_before == nic("10.20.30.5/24", "fd00:20::5/64")
    assert update.owned_after == nic("10.20.30.6/24", "fd00:20::5/64")


def test_torn_last_line_of_a_journal_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_bytes((V1 / "journal-crashed.jsonl").read_bytes()[:-20])
    entries = read_journal(str(path), KINDS)
    assert entries is not None
    assert list(entries.started) == [1]


# plans and snapshots


def test_plan_of_1_0_loads() -> None:
    path = str(V1 / "plan.json")
    document = saved_plans.load(path)
    plan = saved_plans.view(document, path, KINDS)
    assert [(change.order, str(change.address), change.action) for change in plan.changes] == [
        (1, "web/nic/eth1", Action.UPDATE),
        (2, "web/route/default", Action.REPLACE),
        (3, "web/mount/srv/www", Action.CREATE),
        (4, "web/cgroup/memory.max", Action.DELETE),
        (5, "web/mount/srv/data", Action.DELETE),
    ]
    address_change = plan.changes[0]
    assert (address_change.changed, address_change.disruption) == (("addresses",), "brief")
    assert {action: count for action, count in plan.summary().items() if count} == {
        Action.CREATE: 1,
        Action.UPDATE: 1,
        Action.REPLACE: 1,
        Action.DELETE: 2,
    }


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/journal-*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_journal_loads(path: Path) -> None:
    entries = read_journal(str(path), KINDS)
    assert entries.started
    assert entries.begin.user == "operator"


def test_journals_of_1_1_say_what_they_are_about() -> None:
    first = read_journal(str(V1_1 / "journal-first-apply.jsonl"), KINDS).begin
    assert (first.uid, first.command) == (0, ("scplan", "apply", "--auto-approve"))
    assert [Path(file).name for file in first.files] == ["scplan.yaml"]
    assert first.configuration.startswith("sha256:")
    undo = read_journal(str(V1_1 / "journal-undo.jsonl"), KINDS)
    committed = read_journal(str(V1_1 / "journal-committed.jsonl"), KINDS)
    assert undo.begin.undoes == committed.begin.apply_id
    assert undo.ending == "committed"


def test_journals_of_1_1_say_how_a_confirmation_ended() -> None:
    awaiting = read_journal(str(V1_1 / "journal-awaiting.jsonl"), KINDS)
    assert (awaiting.begin.confirm_within_s, awaiting.applied, awaiting.ending) == (600, True, None)
    assert awaiting.awaiting is not None
    assert awaiting.awaiting.time - awaiting.begin.time == pytest.approx(600, abs=30)
    given_up = read_journal(str(V1_1 / "journal-given-up.jsonl"), KINDS)
    assert (given_up.ending, given_up.reason) == ("rolled_back", "given up by `scplan undo`")
    assert given_up.undone == given_up.started.keys()


def test_plan_of_1_0_can_be_planned_again_from_its_configuration() -> None:
    from scplan.config import configuration_from_json

    configuration = configuration_from_json(saved_plans.load(str(V1 / "plan.json"))["origin"]["configuration"], KINDS)
    web = configuration.containers["web"]
    assert (web.runtime, web.pid) == ("process", 1924)
    assert [str(one) for one in web.resources] == [
        "web/device/dev/data",
        "web/nic/eth1",
        "web/route/default",
        "web/mount/srv/www",
    ]


def test_snapshot_of_1_0_loads() -> None:
    captured = snapshot.load(str(V1 / "snapshot.json"), KINDS)
    host = captured.live.host
    assert host.links["web-eth1"].master == "br0"
    disk = host.paths["/dev/loop3"]
    assert disk is not None
    assert (disk.file_type, disk.numbers, disk.whole_disk) == ("block", "7:3", True)
    live: dict[str, Resource] = {str(one): resource for one, resource in captured.live.resources.items()}
    assert live["web/cgroup/memory.max"].get("value") == "67108864"
    assert live["web/device/dev/data"].get("io.read_bps") == 10485760
    assert captured.owned[address("web/route/default")] == ROUTE


# versions


def load_record(path: Path, document: dict[str, Any]) -> object:
    return record_at(path.parent, encode_line(document)).read("process", "web")


def load_journal(path: Path, document: dict[str, Any]) -> object:
    path.write_bytes(encode_line(document))
    return read_journal(str(path), KINDS)


def load_plan(path: Path, document: dict[str, Any]) -> object:
    path.write_text(json.dumps(document))
    return saved_plans.load(str(path))


def load_snapshot(path: Path, document: dict[str, Any]) -> object:
    path.write_text(json.dumps(document))
    return snapshot.load(str(path), KINDS)


LOADERS = [
    ("record.json", load_record),
    ("journal-committed.jsonl", load_journal),
    ("plan.json", load_plan),
    ("snapshot.json", load_snapshot),
]


@pytest.mark.parametrize(("name", "load"), LOADERS, ids=[name for name, _ in LOADERS])
def test_newer_major_version_is_refused_and_says_so(tmp_path: Path, name: str, load: Any) -> None:
    first = next(documents(V1 / name))[1]
    with pytest.raises(RecordDamaged, match=r"has format version 2\.0; this scplan reads 1\."):
        load(tmp_path / "file", {**first, "format_version": "2.0"})


@pytest.mark.parametrize(("name", "load"), LOADERS, ids=[name for name, _ in LOADERS])
def test_newer_minor_version_with_unknown_keys_loads(tmp_path: Path, name: str, load: Any) -> None:
    first = next(documents(V1 / name))[1]
    assert load(tmp_path / "file", {**first, "format_version": "1.7", "added_later": {"a": 1}})


def test_lines_carry_the_checksum_that_the_schemas_describe() -> None:
    for line in (V1 / "journal-committed.jsonl").read_bytes().splitlines():
        checksum, _, text = line.partition(b" ")
        assert int(checksum, 16) == zlib.crc32(text)

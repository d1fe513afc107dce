"""Saved plans: applied exactly as they were reviewed, or refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.e2e.scene import address, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("cgroup1")


def test_saved_plan_is_shown_and_applied_as_it_was_reviewed(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, nics=[{"name": "eth1", "mtu": 1400}], cgroup={"pids.max": 100})
    made = scplan("plan", "--json", "--out", "web.plan", config=asked).ok()
    assert planned(scplan("show", "--json", "web.plan").ok()) == planned(made)
    assert "nic eth1" in scplan("show", "web.plan").ok().stdout
    # The files may change meanwhile: the plan is what was reviewed.
    scplan("apply", "web.plan", config=of(process_container, cgroup={"pids.max": 999})).ok()
    assert process_container.cgroup_file("pids.max").strip() == "100"
    owned = {address(process_container, "nic/eth1"), address(process_container, "cgroup/pids.max")}
    assert set(scplan("state", "list").ok().stdout.split()) == owned


def test_saved_plan_keeps_its_targets(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, nics=[{"name": "eth1"}], cgroup={"pids.max": 100})
    scplan("plan", "--target", f"{process_container.name}/cgroup/*", "--out", "web.plan", config=asked).ok()
    scplan("apply", "web.plan").ok()
    assert scplan("state", "list").ok().stdout.split() == [address(process_container, "cgroup/pids.max")]


def test_saved_plan_to_destroy_destroys(process_container: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=of(process_container, nics=[{"name": "eth1"}])).ok()
    scplan("plan", "--destroy", "--out", "web.plan").ok()
    scplan("apply", "web.plan").ok()
    assert scplan("state", "list").ok().stdout == ""
    assert [link["ifname"] for link in process_container.ip("link")] == ["lo"]


def test_plan_is_stale_when_live_state_has_moved_on(process_container: Container, scplan: Scplan) -> None:
    scplan("plan", "--out", "web.plan", config=of(process_container, cgroup={"pids.max": 100})).ok()
    (process_container.cgroups["pids"] / "pids.max").write_text("50")
    with nothing_changed(process_container):
        refused(scplan("apply", "web.plan"), "web.plan is stale", "cgroup/pids.max", "make a new plan", code=5)


def test_plan_is_stale_when_it_was_applied_already(process_container: Container, scplan: Scplan) -> None:
    scplan("plan", "--out", "web.plan", config=of(process_container, cgroup={"pids.max": 100})).ok()
    scplan("apply", "web.plan").ok()
    refused(scplan("apply", "web.plan"), "stale", code=5)


def test_plan_is_stale_when_the_container_was_started_again(make_container: MakeContainer, scplan: Scplan) -> None:
    container = make_container("runc")
    scplan("plan", "--out", "web.plan", config=of(container, cgroup={"pids.max": 100})).ok()
    container.stop()
    container.start()
    with nothing_changed(container):
        refused(scplan("apply", "web.plan"), "stale", code=5)


def test_plan_is_readable_by_its_owner_alone(process_container: Container, scplan: Scplan) -> None:
    scplan("plan", "--out", "web.plan", config=of(process_container, cgroup={"pids.max": 100})).ok()
    assert (scplan.directory / "web.plan").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: "", "is not JSON"),
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda _: "\0\xff" * 100, "is not JSON"),
        (lambda _: "[]", "not a saved plan"),
        (lambda text: text.replace('"format_version": "1.0"', '"format_version": "2.0"'), "format version 2.0"),
        (lambda text: text.replace('"origin"', '"origins"'), "no origin"),
        (lambda _: "[" * 100_000, "is not JSON"),
        (lambda text: json.dumps(json.loads(text) | {"changes": ["x"]}), "not a JSON object"),
        (lambda text: json.dumps(json.loads(text) | {"origin": {}}), "configuration"),
        (lambda text: json.dumps(json.loads(text) | {"origin": {"targets": 5, "configuration": {}}}), "web.plan"),
    ],
    ids=["empty", "truncated", "garbage", "list", "newer", "no origin", "deep", "changes", "origin", "targets"],
)
def test_damaged_plan_is_refused(process_container: Container, scplan: Scplan, damage: object, said: str) -> None:
    assert callable(damage)
    scplan("plan", "--out", "web.plan", config=of(process_container, cgroup={"pids.max": 100})).ok()
    path = scplan.directory / "web.plan"
    path.write_text(damage(path.read_text()), encoding="latin-1")
    with nothing_changed(process_container):
        refused(scplan("apply", "web.plan"), said)
        shown = scplan("show", "web.plan")
        assert shown.code in (0, 1)
        assert "Traceback" not in shown.stderr
        assert "bug in scplan" not in shown.stderr


def test_plan_with_other_changes_than_its_configuration_makes_is_stale(
    process_container: Container, scplan: Scplan
) -> None:
    scplan("plan", "--out", "web.plan", config=of(process_container, cgroup={"pids.max": 100})).ok()
    document = json.loads((scplan.directory / "web.plan").read_text())
    document["changes"][0]["after"]["value"] = "4000"
    (scplan.directory / "web.plan").write_text(json.dumps(document))
    with nothing_changed(process_container):
        refused(scplan("apply", "web.plan"), "stale", code=5)


@pytest.mark.parametrize("name", ["fifo", "absent", "directory"])
def test_what_is_no_file_is_refused_as_a_plan(scplan: Scplan, name: str) -> None:
    os.mkfifo(scplan.directory / "fifo")
    (scplan.directory / "directory").mkdir()
    for command in ("apply", "show"):
        refused(scplan(command, name, timeout_s=10), name)


def test_plan_can_not_be_saved_where_it_can_not_be_written(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, cgroup={"pids.max": 100})
    refused(scplan("plan", "--out", "absent/web.plan", config=asked), "absent/web.plan")
    Path(scplan.directory / "directory").mkdir()
    refused(scplan("plan", "--out", "directory"), "directory")
    assert sorted(path.name for path in scplan.directory.iterdir()) == ["directory", "scplan.yaml"]


def test_saving_fails_loudly_on_a_full_disk(process_container: Container, scplan: Scplan, small_disk: Path) -> None:
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1k"], capture_output=True)
    asked = of(process_container, cgroup={"pids.max": 100})
    refused(scplan("plan", "--out", str(small_disk / "web.plan"), config=asked), "ENOSPC", "web.plan")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]

"""One damaged, missing or wrong thing never hides the rest: drift, metrics, show and state list report it and go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.e2e.scene import Config, address, config, naming, refused

pytestmark = pytest.mark.needs("cgroup1")


@pytest.fixture
def other(make_container: MakeContainer) -> Container:
    return make_container("process")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


@pytest.fixture
def applied(process_container: Container, other: Container, scplan: Scplan, source: Path) -> Config:
    """Both containers are as the files say; then somebody changes a limit of the other one."""
    asked = config(
        (process_container, {"mounts": [f"{source}:/srv/data"], "cgroup": {"pids.max": 40}}),
        (other, {"cgroup": {"pids.max": 100}}),
    )
    scplan("apply", "--auto-approve", config=asked).ok()
    (other.cgroups["pids"] / "pids.max").write_text("55")
    return asked


def check_drift(scplan: Scplan, other: Container, *said: str, options: tuple[str, ...] = ()) -> str:
    """`drift` reports the other container's drift and what is wrong, with exit 1, as text, JSON and metrics."""
    metrics = scplan.directory / "scplan.prom"
    ran = scplan("drift", "--metrics", str(metrics), *options)
    refused(ran, *said)
    assert "100 → 55" in ran.stdout
    text = metrics.read_text()
    assert f'scplan_drift_resources{{container="{other.name}"}} 1' in text
    assert "scplan_check_problems 1\n" in text
    document = scplan("drift", "--json", "--detailed-exitcode", *options).ok(1).json
    assert [one["address"] for one in document["drifted"]] == [address(other, "cgroup/pids.max")]
    assert [one["severity"] for one in document["diagnostics"]].count("error") == 1
    metrics.unlink()
    return ran.stdout


@pytest.mark.usefixtures("applied")
def test_entry_whose_source_is_gone(scplan: Scplan, other: Container, source: Path) -> None:
    source.rmdir()
    check_drift(scplan, other, "scplan.yaml:", str(source))


def test_what_can_be_planned_is_pending_all_the_same(
    scplan: Scplan, process_container: Container, other: Container, source: Path, applied: Config
) -> None:
    source.rmdir()
    applied["containers"][process_container.name]["cgroup"]["pids.max"] = 41
    scplan.write(applied)
    assert "40 → 41" in check_drift(scplan, other, str(source))


@pytest.mark.parametrize("content", ["version: 1\ncontainers: {web: {cgroup: {pids.maxx: 1}}}\n", "version: [\n"])
@pytest.mark.usefixtures("applied")
def test_files_that_are_wrong(scplan: Scplan, other: Container, content: str) -> None:
    scplan.write(content)
    check_drift(scplan, other, "scplan.yaml:")


@pytest.mark.parametrize("files", [True, False])
@pytest.mark.usefixtures("applied")
def test_record_that_is_damaged(scplan: Scplan, process_container: Container, other: Container, files: bool) -> None:
    if not files:
        (scplan.directory / "scplan.yaml").unlink()
    record = scplan.state_dir / "containers" / "process" / f"{process_container.name}.json"
    record.write_bytes(record.read_bytes()[:-20])
    check_drift(scplan, other, str(record))
    for command in (("show",), ("state", "list")):
        ran = scplan(*command)
        refused(ran, str(record))
        assert address(other, "cgroup/pids.max") in ran.stdout
    ran = scplan("watch", "--once").ok(1)
    assert "100 → 55" in ran.stderr
    assert str(record) in ran.stderr
    # What has nothing to do with it can be forgotten; the damaged one is never guessed at.
    refused(scplan("state", "rm", process_container.name), str(record))
    scplan("state", "rm", other.name).ok()


def test_container_that_is_not_there(scplan: Scplan, other: Container, applied: Config) -> None:
    applied["containers"]["nobody"] = {"runtime": "runc", "cgroup": {"pids.max": 1}}
    scplan.write(applied)
    check_drift(scplan, other, "scplan.yaml:", "no container 'nobody'")


def test_all_containers_that_are_not_there_are_named_with_their_places(
    scplan: Scplan, process_container: Container, source: Path
) -> None:
    source.rmdir()
    asked = config((process_container, {"mounts": [f"{source}:/srv/data"]}))
    asked["containers"] |= {name: {"runtime": "runc", "cgroup": {"pids.max": 1}} for name in ("nobody", "nowhere")}
    ran = scplan("plan", config=asked)
    refused(ran, "no container 'nobody'", "no container 'nowhere'", str(source))
    assert ran.stderr.count("scplan.yaml:") == 3


def test_container_in_the_records_and_in_no_file_is_named(
    scplan: Scplan, process_container: Container, other: Container, applied: Config
) -> None:
    del applied["containers"][process_container.name]
    asked = {**applied, "containers": {other.name: {**naming(other), "cgroup": {"pids.max": 55}}}}
    scplan("apply", "--auto-approve", config=asked).ok()
    words = f"not in these files: {process_container.name} (2 resources)"
    for command in (("plan",), ("drift",)):
        ran = scplan(*command, "--detailed-exitcode").ok()
        assert words in ran.stderr
        assert words in [one["summary"] for one in scplan(*command, "--json").ok().json["diagnostics"]]


def test_container_with_an_empty_key_is_warned_about(
    scplan: Scplan, process_container: Container, applied: Config
) -> None:
    applied["containers"][process_container.name] = naming(process_container)
    ran = scplan("plan", config=applied).ok()
    assert f"container {process_container.name} has no entries: all that scplan owns there is removed" in ran.stderr

"""Mounts with `create_source`: their directory is known by its path, and may be absent, removed or made anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Ran, Scplan
from tests.containers.container import Container
from tests.e2e import scene

pytestmark = pytest.mark.needs("root", "busybox")


@pytest.fixture(params=["runc", "process"])
def web(request: pytest.FixtureRequest, make_container: MakeContainer) -> Container:
    return make_container(request.param)


@pytest.fixture
def wanted(host_directory: Path) -> Path:
    """A directory of the host that is not there yet."""
    return host_directory / "made" / "for it"


def mounting(web: Container, source: Path, **more: Any) -> dict[str, Any]:
    return scene.of(web, mounts=[{"source": str(source), "target": "/mnt/x", **more}])


def apply(scplan: Scplan, config: dict[str, Any]) -> Ran:
    applied = scplan("apply", "--auto-approve", config=config).ok()
    assert actions(scplan, config) == {}
    assert scplan("drift", "--json", config=config).ok().json["drifted"] == []
    return applied


def actions(scplan: Scplan, config: dict[str, Any], *options: str) -> dict[str, list[str]]:
    """Of each action in a plan, what changes."""
    return {
        change["action"]: change["changed"]
        for change in scplan("plan", "--json", *options, config=config).ok().json["changes"]
    }


def marked(source: Path) -> Path:
    (source / "mark").write_text(source.name)
    return source


def seen(web: Container) -> str:
    return web.exec(["cat", "/mnt/x/mark"]).stdout


def mounts(web: Container) -> list[str]:
    return [line for line in web.mounts() if line.split()[4] == "/mnt/x"]


@pytest.mark.parametrize("is_there", [False, True])
def test_another_source_is_mounted_in_place_of_the_one(
    scplan: Scplan, web: Container, wanted: Path, host_directory: Path, is_there: bool
) -> None:
    apply(scplan, mounting(web, host_directory))
    if is_there:
        wanted.mkdir(parents=True)
    config = mounting(web, wanted, create_source=True)
    assert list(actions(scplan, config)) == ["replace"]
    said = scplan("plan", config=config).ok().stdout
    assert f"source {host_directory} → {wanted}" in said
    apply(scplan, config)
    marked(wanted)
    assert seen(web) == "for it"
    apply(scplan, mounting(web, host_directory / "made", create_source=True))
    marked(host_directory / "made")
    assert seen(web) == "made"
    assert len(mounts(web)) == 1
    scplan("undo", "--auto-approve").ok()
    assert seen(web) == "for it"
    scplan("destroy", web.name, "--auto-approve").ok()
    assert mounts(web) == []


def test_directory_that_was_made_anew_is_mounted_anew(scplan: Scplan, web: Container, wanted: Path) -> None:
    config = mounting(web, wanted, create_source=True)
    apply(scplan, config)
    marked(wanted)
    shutil.rmtree(wanted)
    wanted.mkdir()
    (wanted / "mark").write_text("anew")
    assert seen(web) == ""
    assert scplan("drift", "--json", config=config).ok().json["drifted"]
    assert actions(scplan, config) == {"replace": ["source"]}
    apply(scplan, config)
    assert seen(web) == "anew"
    assert len(mounts(web)) == 1


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_removed_directory_is_unmounted(scplan: Scplan, web: Container, wanted: Path, is_made_anew: bool) -> None:
    config = mounting(web, wanted, create_source=True)
    apply(scplan, config)
    wanted.rmdir()
    if is_made_anew:
        wanted.mkdir()
    scplan("destroy", web.name, "--auto-approve").ok()
    assert mounts(web) == []
    assert scplan("state", "list", "--json").json["resources"] == []


def test_what_others_mounted_is_not_adopted_for_a_directory_that_is_absent(
    scplan: Scplan, web: Container, wanted: Path
) -> None:
    web.exec(["sh", "-ec", "mkdir -p /mnt/x; mount -t tmpfs theirs /mnt/x"], check=True)
    before = mounts(web)
    refused = scplan("apply", "--auto-approve", config=mounting(web, wanted, create_source=True)).ok(1)
    assert "made by others, and differs in source" in refused.stderr
    assert mounts(web) == before
    assert not wanted.exists()


@pytest.mark.parametrize("is_removed", [False, True])
def test_what_others_mounted_instead_is_drift_and_stays(
    scplan: Scplan, web: Container, wanted: Path, is_removed: bool
) -> None:
    config = mounting(web, wanted, create_source=True)
    apply(scplan, config)
    web.exec(["sh", "-ec", "umount /mnt/x; mount -t tmpfs theirs /mnt/x"], check=True)
    if is_removed:
        wanted.rmdir()
    (drifted,) = scplan("drift", "--json", config=config).ok().json["drifted"]
    assert "source" in drifted["changed"]
    assert drifted["live"]["source"] == "tmpfs"
    theirs = mounts(web)
    scplan("destroy", web.name, "--auto-approve").ok()
    assert mounts(web) == theirs
    assert scplan("state", "list", "--json").json["resources"] == []


def test_snapshot_says_where_it_is_from(scplan: Scplan, web: Container, wanted: Path, tmp_path: Path) -> None:
    apply(scplan, config := mounting(web, wanted, create_source=True))
    other = mounting(web, wanted.parent, create_source=True)
    captured = str(tmp_path / "live.snapshot")
    scplan("snapshot", "--out", captured, config=config).ok()
    assert actions(scplan, config, "--live", captured) == {}
    assert list(actions(scplan, other, "--live", captured)) == ["replace"]


class TestSharedDirectory:
    """What was made for one mount goes with the last one that needs it."""

    @pytest.fixture
    def containers(self, make_container: MakeContainer) -> tuple[Container, Container]:
        return make_container("process"), make_container("process")

    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("is_one_apply", [False, True])
    def test_it_stays_for_the_other_container(
        self, scplan: Scplan, containers: tuple[Container, Container], wanted: Path, first: int, is_one_apply: bool
    ) -> None:
        section = {"mounts": [{"source": str(wanted), "target": "/mnt/x", "create_source": True}]}
        if is_one_apply:
            scplan("apply", "--auto-approve", config=scene.config(*((one, section) for one in containers))).ok()
        else:
            for one in containers:
                scplan("apply", "--auto-approve", "--target", one.name, config=scene.config((one, section))).ok()
        gone, left = containers[first], containers[1 - first]
        scplan("destroy", gone.name, "--auto-approve").ok()
        assert mounts(gone) == []
        marked(wanted)
        assert seen(left) == wanted.name
        (wanted / "mark").unlink()
        scplan("destroy", left.name, "--auto-approve").ok()
        assert not wanted.parent.exists()

    def test_it_goes_when_all_go(self, scplan: Scplan, containers: tuple[Container, Container], wanted: Path) -> None:
        section = {"mounts": [{"source": str(wanted), "target": "/mnt/x", "create_source": True}]}
        scplan("apply", "--auto-approve", config=scene.config(*((one, section) for one in containers))).ok()
        scplan("destroy", *(one.name for one in containers), "--auto-approve").ok()
        assert not wanted.parent.exists()

    def test_an_apply_that_fails_leaves_it_to_who_had_it(
        self, scplan: Scplan, containers: tuple[Container, Container], wanted: Path
    ) -> None:
        entry = {"source": str(wanted), "target": "/mnt/x", "create_source": True}
        web, db = containers
        scplan("apply", "--auto-approve", config=scene.of(web, mounts=[entry])).ok()
        failing = scene.of(db, mounts=[entry], cgroup={"pids.max": 100})
        scplan("apply", "--auto-approve", "--probe", "false", config=failing).ok(3)
        assert mounts(db) == []
        marked(wanted)
        assert seen(web) == wanted.name

    def test_it_stays_for_a_record_that_can_not_be_read(
        self, scplan: Scplan, containers: tuple[Container, Container], wanted: Path
    ) -> None:
        section = {"mounts": [{"source": str(wanted), "target": "/mnt/x", "create_source": True}]}
        scplan("apply", "--auto-approve", config=scene.config(*((one, section) for one in containers))).ok()
        web, db = containers
        (scplan.state_dir / f"containers/process/{db.name}.json").write_text("damaged\n")
        ran = scplan("destroy", web.name, "--auto-approve").ok()
        assert f"warning: {scplan.state_dir}/containers/process/{db.name}.json is damaged" in ran.stderr
        assert mounts(web) == []
        assert wanted.exists()


class TestContainerThatDoesNotRun:
    """What was made for it on the host goes and comes with its record."""

    @pytest.fixture
    def stopped(self, scplan: Scplan, make_container: MakeContainer, wanted: Path) -> Container:
        """It has a mount of `wanted`, and has ended."""
        web = make_container("runc")
        apply(scplan, mounting(web, wanted, create_source=True))
        web.stop()
        assert wanted.exists()
        return web

    def test_destroy(self, scplan: Scplan, stopped: Container, wanted: Path) -> None:
        scplan("destroy", stopped.name, "--auto-approve").ok()
        assert not wanted.parent.exists()

    def test_another_source(self, scplan: Scplan, stopped: Container, wanted: Path, host_directory: Path) -> None:
        other = host_directory / "other"
        config = mounting(stopped, other, create_source=True)
        assert actions(scplan, config) == {"update": ["source"]}
        scplan("apply", "--auto-approve").ok()
        assert not wanted.parent.exists()
        stopped.start()
        apply(scplan, config)
        marked(other)
        assert seen(stopped) == "other"
        assert sorted(path.name for path in host_directory.iterdir()) == ["other"]
        (other / "mark").unlink()
        scplan("destroy", stopped.name, "--auto-approve").ok()
        assert list(host_directory.iterdir()) == []

    def test_failure(
        self, scplan: Scplan, make_container: MakeContainer, stopped: Container, wanted: Path, host_directory: Path
    ) -> None:
        running = make_container("process")
        limited = {"cgroup": {"pids.max": 100}}
        other = {"mounts": [{"source": str(host_directory), "target": "/mnt/x"}]}
        failing = {**scene.config((stopped, other), (running, limited)), "probes": ["false"]}
        scplan("apply", "--auto-approve", config=failing).ok(3)
        assert wanted.exists()
        assert actions(scplan, mounting(stopped, wanted, create_source=True)) == {}

"""Containers of real engines that are removed and made again under their name, as units and compose files do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.containers.oci import SLEEP_FOREVER
from tests.containers.room import Room
from tests.containers.session import Session
from tests.e2e.hooked import hooked
from tests.e2e.rooms import RoomScplan
from tests.e2e.scene import planned, refused

pytestmark = pytest.mark.needs("root", "busybox", "runc")
IMAGE, OTHER_IMAGE = "localhost/bb:1", "localhost/other:1"


@pytest.fixture(scope="module", params=["podman", "docker"])
def engine(request: pytest.FixtureRequest, room: Room, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = hooked(request.param, room, tmp_path_factory.mktemp("hook"))
    room.run(made.name, "tag", IMAGE, OTHER_IMAGE)
    return made


@pytest.fixture
def name(engine: Any, session: Session) -> Iterator[str]:
    made = session.name()
    yield made
    engine.room.run(engine.name, "rm", "--force", *engine.at_once, made, check=False)


def run(engine: Any, name: str, *options: str, image: str = IMAGE) -> None:
    command = ("run", "--detach", "--network=none", *engine.options, *options, f"--name={name}", image)
    engine.room.run(engine.name, *command, *SLEEP_FOREVER)


def make_again(engine: Any, name: str, *options: str, image: str = IMAGE) -> None:
    first = engine.full_id(name)
    engine.room.run(engine.name, "rm", "--force", *engine.at_once, name)
    run(engine, name, *options, image=image)
    assert engine.full_id(name) != first


def asked(engine: Any, name: str, **more: str) -> dict[str, Any]:
    nics = [{"name": "eth1", "bridge": "br0", "addresses": ["10.97.0.5/24"]}]
    body = {"runtime": engine.name, "nics": nics, "cgroup": {"pids.max": 77}, **more}
    return {"version": 1, "containers": {name: body}}


def has_nic(engine: Any, name: str) -> bool:
    links = json.loads(
        engine.room.run("nsenter", f"--net=/proc/{engine.pid(name)}/ns/net", "ip", "-json", "link").stdout
    )
    return any(link["ifname"] == "eth1" for link in links)


def said_at_start(engine: Any, scplan: RoomScplan, name: str) -> str:
    """The words of the hook for the container, called as its runtime calls it: they are in the system's log."""
    container_id = engine.full_id(name)
    places = {
        "podman": f"/var/lib/containers/storage/overlay-containers/{container_id}/userdata",
        "docker": f"/run/containerd/io.containerd.runtime.v2.task/moby/{container_id}",
    }
    state = {"id": container_id, "pid": engine.pid(name), "bundle": places[engine.name], "status": "creating"}
    ran = scplan("hook", "--runtime", engine.name, "createRuntime", stdin=json.dumps(state))
    return ran.ok().stderr


def test_records_follow_the_name_where_the_file_says_so(engine: Any, scplan: RoomScplan, name: str) -> None:
    run(engine, name)
    scplan("apply", "--auto-approve", config=asked(engine, name, identity="name")).ok()
    for _ in range(2):
        make_again(engine, name)
        assert has_nic(engine, name)
        assert planned(scplan("plan", "--json").ok()) == {}
        assert scplan("drift", "--detailed-exitcode", "--json").ok().json["drifted"] == []
    make_again(engine, name, image=OTHER_IMAGE)
    assert not has_nic(engine, name)
    assert f"it is made of {OTHER_IMAGE}" in said_at_start(engine, scplan, name)
    refused(scplan("plan"), "was made again", f"it is made of {OTHER_IMAGE}")
    make_again(engine, name)
    assert has_nic(engine, name)
    scplan("destroy", name, "--auto-approve").ok()
    assert not has_nic(engine, name)
    assert scplan("state", "list").ok().stdout == ""


def test_image_of_the_file_is_a_glob(engine: Any, scplan: RoomScplan, name: str) -> None:
    run(engine, name)
    scplan("apply", "--auto-approve", config=asked(engine, name, identity="name", image="localhost/*:1")).ok()
    make_again(engine, name, image=OTHER_IMAGE)
    assert has_nic(engine, name)
    scplan("apply", "--auto-approve", config=asked(engine, name, identity="name", image=IMAGE))
    make_again(engine, name, image=IMAGE)
    assert has_nic(engine, name)


def test_label_of_the_file_is_needed(engine: Any, scplan: RoomScplan, name: str) -> None:
    run(engine, name, "--label=app=web", "--label=tier=x")
    scplan("apply", "--auto-approve", config=asked(engine, name, identity="name", label="app=web")).ok()
    make_again(engine, name, "--label=app=web", image=OTHER_IMAGE)
    assert has_nic(engine, name)
    assert planned(scplan("plan", "--json").ok()) == {}
    make_again(engine, name, "--label=app=other")
    assert not has_nic(engine, name)
    assert "it has no label app=web" in said_at_start(engine, scplan, name)
    refused(scplan("plan"), "it has no label app=web")
    make_again(engine, name, "--label=app=web")
    assert has_nic(engine, name)


def test_container_that_is_removed_as_it_ends_is_followed_unless_the_file_says_id(
    engine: Any, scplan: RoomScplan, name: str
) -> None:
    run(engine, name, "--rm")
    scplan("apply", "--auto-approve", config=asked(engine, name)).ok()
    make_again(engine, name, "--rm")
    assert has_nic(engine, name)
    assert "No changes." in scplan("apply", "--auto-approve", config=asked(engine, name, identity="id")).ok().stdout
    make_again(engine, name, "--rm")
    assert not has_nic(engine, name)
    assert "another one of this name" in said_at_start(engine, scplan, name)


def test_without_it_the_start_says_that_the_records_are_about_another_one(
    engine: Any, scplan: RoomScplan, name: str
) -> None:
    run(engine, name)
    scplan("apply", "--auto-approve", config=asked(engine, name)).ok()
    make_again(engine, name)
    assert not has_nic(engine, name)
    said = said_at_start(engine, scplan, name)
    assert "another one of this name" in said
    assert f"scplan state mv {name} {name}" in said
    refused(scplan("plan"), "was made again", "identity: name")
    scplan("apply", "--auto-approve", config=asked(engine, name, identity="name")).ok()
    assert has_nic(engine, name)


def test_renamed_container_that_runs_keeps_its_nic(engine: Any, scplan: RoomScplan, name: str) -> None:
    run(engine, name)
    scplan("apply", "--auto-approve", config=asked(engine, name, identity="name")).ok()
    engine.room.run(engine.name, "rename", name, f"{name}-old")
    try:
        run(engine, name)
        assert has_nic(engine, f"{name}-old")
        assert not has_nic(engine, name)
        assert "that one runs" in said_at_start(engine, scplan, name)
    finally:
        engine.room.run(engine.name, "rm", "--force", *engine.at_once, f"{name}-old")


def test_watch_plugs_in_what_no_hook_did(engine: Any, scplan: RoomScplan, name: str) -> None:
    run(engine, name)
    scplan("apply", "--auto-approve", config=asked(engine, name, identity="name")).ok()
    engine.room.sh("mv /var/lib/scplan /var/lib/elsewhere")  # the hook finds no records
    make_again(engine, name)
    engine.room.sh("rm -rf /var/lib/scplan; mv /var/lib/elsewhere /var/lib/scplan")
    assert not has_nic(engine, name)
    scplan("watch", "--once").ok()
    assert has_nic(engine, name)


def test_import_writes_the_identity_of_a_container_that_is_made_again(
    engine: Any, scplan: RoomScplan, name: str
) -> None:
    def imported() -> dict[str, Any]:
        document = scplan("import", name, "--json").ok().json["containers"][name]
        return {key: document[key] for key in ("identity", "image", "label") if key in document}

    run(engine, name)
    assert imported() == {}
    for given in ({"identity": "name"}, {"identity": "id"}, {"identity": "name", "image": "localhost/*:1"}):
        scplan("apply", "--auto-approve", config=asked(engine, name, **given)).ok()
        assert imported() == given
    scplan("destroy", name, "--auto-approve").ok()
    make_again(engine, name, "--rm")
    assert imported() == {"identity": "name"}
    group = "/sys/fs/cgroup/pids$(sed -n 's/^[0-9]*:pids://p' /proc/$1/cgroup)/pids.max"
    engine.room.sh(f'echo 66 >"{group}"', str(engine.pid(name)))
    scplan("import", name, "--adopt").ok()
    make_again(engine, name, "--rm")
    assert engine.room.sh(f'cat "{group}"', str(engine.pid(name))).strip() == "66"
    scplan("destroy", name, "--auto-approve").ok()
    label = "com.docker.compose.project=shop"
    make_again(engine, name, f"--label={label}")
    # Podman keeps labels where only its command line reads them.
    assert imported() == ({"identity": "name", "label": label} if engine.name == "docker" else {})

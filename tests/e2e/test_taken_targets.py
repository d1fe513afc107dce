"""A container's root unmounts what scplan mounted, or mounts over it: what is its own stays, what is scplan's goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.e2e.scene import Config, of, refused

pytestmark = pytest.mark.needs("root", "busybox")

THINGS = {
    "unmounted": "umount /mnt/x",
    "a symlink": "umount /mnt/x; rmdir /mnt/x; ln -s /etc /mnt/x",
    "a file": "umount /mnt/x; rmdir /mnt/x; echo mine > /mnt/x",
    "nothing": "umount /mnt/x; rmdir /mnt/x",
    "another mount": "umount /mnt/x; mount -t tmpfs t /mnt/x",
    "moved": "mkdir /mnt/y; mount -o move /mnt/x /mnt/y; umount /mnt/y",
}
REFUSED = {
    "a symlink": "/mnt/x is a symlink in the container",
    "a file": "is a directory, but /mnt/x in the container is a file",
}
"""Where nothing can be mounted: the plan says so."""


@dataclass
class Taken:
    container: Container
    sections: dict[str, Any]
    thing: str = ""

    def own(self) -> list[str]:
        """What is mounted at the target, or is there."""
        return [
            *(line.split(" - ")[1] for line in self.container.mounts() if line.split()[4] == "/mnt/x"),
            self.container.exec(["sh", "-c", "ls -ld /mnt/x | cut -c1"]).stdout,
        ]


@pytest.fixture(params=[False, True], ids=["root", "userns"])
def mounted(
    request: pytest.FixtureRequest, scplan: Scplan, make_container: MakeContainer, host_directory: Path
) -> Taken:
    container = make_container("process", userns=request.param)
    container.exec(["mkdir", "-p", "/mnt/x"], check=True)
    sections = {"mounts": [f"{host_directory}:/mnt/x:ro"]}
    scplan("apply", "--auto-approve", config=of(container, **sections)).ok()
    return Taken(container, sections)


@pytest.fixture(params=THINGS)
def taken(request: pytest.FixtureRequest, mounted: Taken) -> Taken:
    mounted.container.exec(["sh", "-ec", THINGS[request.param]], check=True)
    mounted.thing = request.param
    return mounted


def is_released(taken: Taken, scplan: Scplan) -> None:
    scplan("destroy", taken.container.name, "--auto-approve").ok()
    assert scplan("state", "list", "--json").json["resources"] == []


def test_destroy_leaves_what_is_the_containers(taken: Taken, scplan: Scplan) -> None:
    own = taken.own()
    is_released(taken, scplan)
    assert taken.own() == own


@pytest.mark.parametrize("wanted", ["not any more", "again"])
def test_failure_leaves_what_is_the_containers(taken: Taken, scplan: Scplan, wanted: str) -> None:
    own, before = taken.own(), fingerprint([taken.container])
    sections = taken.sections if wanted == "again" else {}
    ran = scplan("apply", "--auto-approve", "--probe", "false", config=of(taken.container, **sections))
    if wanted == "again" and taken.thing in REFUSED:
        refused(ran, "scplan.yaml:", f"{taken.container.name}/mount/mnt/x", REFUSED[taken.thing])
    else:
        assert "not undone" not in ran.ok(3).stderr
    changed = difference(before, fingerprint([taken.container]))
    # A mount that is only missing is made again.
    assert changed == [] or (wanted == "not any more" and "tmpfs" not in own[0] and len(changed) == 1), changed
    is_released(taken, scplan)


def test_what_is_mounted_over_it_has_to_go_first(mounted: Taken, scplan: Scplan) -> None:
    mounted.container.exec(["mount", "-t", "tmpfs", "t", "/mnt/x"], check=True)
    before = fingerprint([mounted.container])
    for sections, place in (({}, "error: "), (mounted.sections, "scplan.yaml:8:5: ")):
        ran = scplan("apply", "--auto-approve", config=of(mounted.container, **sections))
        refused(ran, f"{place}others have mounted something on top of /mnt/x", "unmount that first")
        assert difference(before, fingerprint([mounted.container])) == []
    mounted.container.exec(["umount", "/mnt/x"], check=True)
    is_released(mounted, scplan)


def test_what_hides_it_has_to_go_first(mounted: Taken, scplan: Scplan) -> None:
    mounted.container.exec(["mount", "-t", "tmpfs", "t", "/mnt"], check=True)
    before = fingerprint([mounted.container])
    assert "mount /mnt/x              is gone" in scplan("drift").ok().stdout
    for sections, place in (({}, "error: "), (mounted.sections, "scplan.yaml:8:5: ")):
        ran = scplan("apply", "--auto-approve", config=of(mounted.container, **sections))
        refused(ran, f"{place}others have mounted something on /mnt, which hides /mnt/x", "unmount that first")
        assert difference(before, fingerprint([mounted.container])) == []
    mounted.container.exec(["umount", "/mnt"], check=True)
    is_released(mounted, scplan)


@pytest.mark.parametrize("target", ["/mnt/x/deep", "/mnt/x/deep/er"])
@pytest.mark.parametrize("userns", [False, True])
def test_what_others_mounted_over_an_optional_entry_is_not_taken_along(
    make_container: MakeContainer, scplan: Scplan, host_directory: Path, target: str, userns: bool
) -> None:
    container = make_container("process", userns=userns)
    for name in ("one", "two"):
        (host_directory / name / "deep/er").mkdir(parents=True)

    def wanted(name: str, **options: Any) -> Config:
        inner = {"source": str(host_directory), "target": target, "required": False}
        return of(container, mounts=[{"source": str(host_directory / name), "target": "/mnt/x", **options}, inner])

    scplan("apply", "--auto-approve", config=wanted("one")).ok()
    container.exec(["mount", "-t", "tmpfs", "t", "/mnt/x/deep"], check=True)
    before = fingerprint([container])
    ran = scplan("apply", "--auto-approve", config=wanted("two"))
    refused(ran, "scplan.yaml:", f"{container.name}/mount/mnt/x\n", "others have mounted something on", target)
    optional = wanted("two", required=False)
    assert scplan("apply", "--auto-approve", config=optional).ok().stderr.count("others have mounted something on") == 2
    assert difference(before, fingerprint([container])) == []
    assert scplan("plan", config=optional).ok().stdout.strip() == "No changes."
    container.exec(["umount", "/mnt/x/deep"], check=True)
    scplan("apply", "--auto-approve", config=wanted("two")).ok()
    assert scplan("plan", config=wanted("two")).ok().stdout.strip() == "No changes."


@pytest.mark.parametrize("userns", [False, True], ids=["root", "userns"])
@pytest.mark.parametrize(
    "inner", [{"devices": [{"source": "/dev/null", "target": "/mnt/x/node"}]}, {"mounts": ["/etc:/mnt/x/in:ro"]}]
)
def test_what_a_mount_hid_can_be_used_as_it_goes(
    make_container: MakeContainer, scplan: Scplan, host_directory: Path, inner: dict[str, Any], userns: bool
) -> None:
    """The mount shows a directory of the host in which the container's root may make nothing, and another file."""
    container = make_container("process", userns=userns)
    container.exec(["mkdir", "-p", "/mnt/x"], check=True)
    (host_directory / "in").touch()
    outer = {"mounts": [f"{host_directory}:/mnt/x"]}
    scplan("apply", "--auto-approve", config=of(container, **inner)).ok()
    before = fingerprint([container])
    scplan("apply", "--auto-approve", config=of(container, **outer)).ok()
    scplan("undo", "--auto-approve").ok()
    assert difference(before, fingerprint([container])) == []
    scplan("apply", "--auto-approve", config=of(container, **outer)).ok()
    scplan("apply", "--auto-approve", config=of(container, **inner)).ok()
    assert difference(before, fingerprint([container])) == []

"""An undo has the mount itself back: its flags, its peers, all that was mounted in it, and a source that is gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import difference, fingerprint
from tests.e2e.scene import nothing_changed, of

pytestmark = pytest.mark.needs("root", "busybox", "runc", "userns")

_PARKED = Path("/run/scplan/parked")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def inside(container: Container, *words: str) -> None:
    """Runs a command of busybox in the container's mount namespace, as the host's root."""
    enter = ["nsenter", f"--target={container.pid}", "--mount", "/bin/busybox"]
    subprocess.run([*enter, *words], check=True)


@pytest.fixture(params=["runc", "process", "process-userns"])
def web(request: pytest.FixtureRequest, make_container: MakeContainer) -> Container:
    runtime, _, userns = request.param.partition("-")
    return make_container(runtime, userns=bool(userns))


@pytest.fixture
def shared(host_directory: Path) -> Path:
    """A shared file system of the host with another one in it, which has flags of its own, and is read-only."""
    source = host_directory / "shared"
    source.mkdir()
    mount("-t", "tmpfs", "tests", str(source))
    mount("--make-shared", str(source))
    for name in ("disk", "place"):
        (source / name).mkdir()
    mount("-t", "tmpfs", "-o", "nosuid,noexec", "tests", str(source / "disk"))
    (source / "disk" / "file").write_text("of the host")
    mount("-o", "remount,bind,ro", str(source / "disk"))
    return source


def failing(scplan: Scplan, config: Any) -> None:
    """An apply that is undone at its end."""
    scplan("apply", "--auto-approve", "--probe", "false", config=config).ok(3)


def unconfirmed(scplan: Scplan, config: Any) -> None:
    """An apply that nobody confirms."""
    scplan("apply", "--auto-approve", "--confirm-within", "100s", config=config).ok()
    scplan("undo", "--auto-approve").ok()


WAYS = pytest.mark.parametrize("way", [failing, unconfirmed])
CHANGES: dict[str, Callable[[dict[str, Any], Path], list[Any]]] = {
    "removed": lambda _, __: [],
    "read only": lambda entry, _: [entry | {"read_only": True}],
    "private": lambda entry, _: [entry | {"propagation": "rprivate"}],
    "another source": lambda entry, other: [entry | {"source": str(other)}],
}


@WAYS
@pytest.mark.parametrize("propagation", ["rshared", "rslave", "private"])
@pytest.mark.parametrize("change", CHANGES)
def test_mount_with_mounts_in_it_is_as_before(
    web: Container,
    scplan: Scplan,
    shared: Path,
    host_directory: Path,
    propagation: str,
    change: str,
    way: Callable[[Scplan, Any], None],
) -> None:
    entry = {"source": str(shared), "target": "/srv/data", "propagation": propagation}
    scplan("apply", "--auto-approve", config=of(web, mounts=[entry])).ok()
    inside(web, "mount", "-t", "tmpfs", "-o", "nodev", "others", "/srv/data/place")
    other = host_directory / "other"
    (other / "place").mkdir(parents=True)
    with nothing_changed(web):
        way(scplan, of(web, mounts=CHANGES[change](entry, other)))
    assert parked_of(scplan) == []


def parked_of(scplan: Scplan) -> list[str]:
    """What is kept for applies of these records."""
    inode = os.stat(scplan.state_dir).st_ino
    return [path.name for path in _PARKED.iterdir() if f":{inode}." in path.name]


@WAYS
def test_flags_that_a_runtime_gave_are_as_before(
    web: Container, scplan: Scplan, host_directory: Path, way: Callable[[Scplan, Any], None]
) -> None:
    entry = {"source": str(host_directory), "target": "/srv/data"}
    scplan("apply", "--auto-approve", config=of(web, mounts=[entry])).ok()
    inside(web, "mount", "-o", "remount,bind,nosuid,nodev,noexec", "none", "/srv/data")
    forget(scplan, web)
    scplan("apply", "--auto-approve", config=of(web, mounts=[entry])).ok()
    with nothing_changed(web):
        way(scplan, of(web, mounts=[]))
    scplan("apply", "--auto-approve", config=of(web, mounts=[])).ok()
    scplan("undo", "--auto-approve").ok()
    (line,) = [line for line in web.mounts() if line.split()[4] == "/srv/data"]
    assert line.split()[5].split(",") == ["rw", "nosuid", "nodev", "noexec", "relatime"]


def forget(scplan: Scplan, web: Container) -> None:
    """Has scplan own nothing of it any more: what it made is adopted by the next apply."""
    for path in scplan.state_dir.glob(f"containers/*/{web.name}.json*"):
        path.unlink()


@WAYS
def test_source_that_was_replaced_is_mounted_as_before(
    web: Container, scplan: Scplan, host_directory: Path, way: Callable[[Scplan, Any], None]
) -> None:
    """A release directory is swapped, and a file is saved by renaming another one to its name."""
    for name in ("old", "new"):
        (host_directory / name).mkdir()
        (host_directory / name / "release").write_text(name)
    current = host_directory / "current"
    current.symlink_to("old")
    asked = of(web, mounts=[f"{current}:/srv/app"])
    scplan("apply", "--auto-approve", config=asked).ok()
    current.unlink()
    current.symlink_to("new")
    with nothing_changed(web):
        way(scplan, asked)
    assert web.exec(["cat", "/srv/app/release"], check=True).stdout == "old"
    scplan("apply", "--auto-approve", config=asked).ok()
    assert web.exec(["cat", "/srv/app/release"], check=True).stdout == "new"


@WAYS
def test_file_that_was_saved_by_renaming_is_shown_as_before(
    web: Container, scplan: Scplan, host_directory: Path, way: Callable[[Scplan, Any], None]
) -> None:
    """The kernel mounts no file anywhere that was removed: a copy of it is kept, and the plan says what goes."""
    saved, draft = host_directory / "file", host_directory / "draft"
    saved.write_text("old")
    saved.chmod(0o644)
    asked = of(web, mounts=[{"source": str(saved), "target": "/srv/file", "read_only": True}])
    scplan("apply", "--auto-approve", config=asked).ok()
    draft.write_text("new")
    draft.rename(saved)
    (change,) = scplan("plan", "--json", config=asked).ok().json["changes"]
    assert change["lost"] == ["what is mounted at /srv/file, which the host has removed"]
    for _ in range(2):
        way(scplan, asked)
        assert web.exec(["cat", "/srv/file"], check=True).stdout == "old"
        (line,) = [line for line in web.mounts() if line.split()[4] == "/srv/file"]
        assert line.split()[5].startswith("ro")
    scplan("apply", "--auto-approve", config=asked).ok()
    assert web.exec(["cat", "/srv/file"], check=True).stdout == "new"
    assert len([line for line in web.mounts() if line.split()[4] == "/srv/file"]) == 1


def test_an_unmount_that_never_happened_is_not_undone(
    make_container: MakeContainer, scplan: Scplan, host_directory: Path
) -> None:
    web, other = make_container("runc"), make_container("runc")
    source = host_directory / "source"
    source.mkdir()
    asked = of(web, mounts=[f"{source}:/srv/data"])
    scplan("apply", "--auto-approve", config=asked).ok()
    source.rename(host_directory / "away")
    source.mkdir()
    with _busy(web, "/srv/data"), nothing_changed(web):
        scplan("apply", "--auto-approve", config=asked).ok(3)
        scplan("apply", "--auto-approve", config=of(other, cgroup={"pids.max": 55})).ok()


@contextmanager
def _busy(container: Container, directory: str) -> Iterator[None]:
    words = container.exec_command(["sh", "-c", f"cd {directory} && echo in && exec sleep 1000"])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        try:
            yield
        finally:
            # What waits outside passes no signal on.
            container.exec(["sh", "-c", "pkill -f 'sleep 1000'"])
            process.kill()


def test_nothing_of_the_host_is_unmounted(web: Container, scplan: Scplan, shared: Path) -> None:
    entry = {"source": str(shared), "target": "/srv/data", "propagation": "rshared"}
    before = fingerprint([web])
    for mounts in ([entry], [entry | {"propagation": "rslave"}], [entry], []):
        scplan("apply", "--auto-approve", config=of(web, mounts=mounts)).ok()
    assert difference(before, fingerprint([web])) == []


def test_mounts_of_others_are_named_by_the_plan_and_put_back_where_there_is_a_place(
    web: Container, scplan: Scplan, host_directory: Path
) -> None:
    for name in ("one/a", "one/b", "two/a"):
        (host_directory / name).mkdir(parents=True)
    asked = of(web, mounts=[f"{host_directory}/one:/srv/data"])
    scplan("apply", "--auto-approve", config=asked).ok()
    for name in ("a", "b"):
        inside(web, "mount", "-t", "tmpfs", "-o", "noexec", f"others-{name}", f"/srv/data/{name}")
    (change,) = scplan("plan", "--json", config=of(web, mounts=[])).ok().json["changes"]
    assert change["lost"] == ["mounts of others at /srv/data/a, /srv/data/b"]
    asked = of(web, mounts=[f"{host_directory}/two:/srv/data"])
    (change,) = scplan("plan", "--json", config=asked).ok().json["changes"]
    assert (change["put_back"], change["lost"]) == (
        ["mount of others at /srv/data/a"],
        ["mount of others at /srv/data/b"],
    )
    scplan("apply", "--auto-approve", config=asked).ok()
    there = [line.split(" - ")[1].split()[1] for line in web.mounts() if line.split()[4].startswith("/srv/data/")]
    assert there == ["others-a"]
    assert scplan("plan", "--json", config=asked).ok().json["changes"] == []


def test_read_only_reaches_what_came_with_the_source_alone(
    web: Container, scplan: Scplan, shared: Path, host_directory: Path
) -> None:
    inner = host_directory / "inner"
    inner.mkdir()
    (shared / "entry").mkdir()
    mount("-o", "remount,bind,rw", str(shared / "disk"))
    entries = [f"{shared}:/srv/data:rw", f"{inner}:/srv/data/entry:rw"]
    scplan("apply", "--auto-approve", config=of(web, mounts=entries)).ok()
    inside(web, "mount", "-t", "tmpfs", "others", "/srv/data/place")
    before = fingerprint([web])
    restricted = of(web, mounts=[f"{shared}:/srv/data:ro", entries[1]])
    scplan("apply", "--auto-approve", config=restricted).ok()
    access = {line.split()[4]: line.split()[5].split(",")[0] for line in web.mounts()}
    assert [access[f"/srv/data{path}"] for path in ("", "/disk", "/entry", "/place")] == ["ro", "ro", "rw", "rw"]
    assert scplan("plan", "--json", config=restricted).ok().json["changes"] == []
    scplan("apply", "--auto-approve", config=of(web, mounts=entries)).ok()
    assert difference(before, fingerprint([web])) == []


def test_flags_of_the_hosts_mount_are_never_lifted(web: Container, scplan: Scplan, host_directory: Path) -> None:
    source = host_directory / "locked"
    source.mkdir()
    mount("-t", "tmpfs", "-o", "nosuid,noexec", "tests", str(source))
    mount("-o", "remount,bind,ro", str(source))
    for word in ("rw", "ro", "rw"):
        asked = of(web, mounts=[f"{source}:/srv/data:{word}"])
        scplan("apply", "--auto-approve", config=asked).ok()
        assert scplan("plan", "--json", config=asked).ok().json["changes"] == []
        (line,) = [line for line in web.mounts() if line.split()[4] == "/srv/data"]
        assert {"ro", "nosuid", "noexec"} <= set(line.split()[5].split(","))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flags", ("mount", "-o", "remount,bind,noexec", "none", "/srv/data")),
        ("submounts", ("umount", "/srv/data/disk")),
        ("submounts", ("mount", "-o", "remount,bind,rw,nosuid", "none", "/srv/data/disk")),
        ("read_only", ("mount", "-o", "remount,bind,rw,nosuid,noexec", "none", "/srv/data/disk")),
        ("read_only", ("mount", "-o", "remount,bind,rw", "none", "/srv/data")),
        ("propagation", ("mount", "--make-shared", "/srv/data")),
    ],
)
def test_drift_sees_what_an_admin_changes_and_apply_repairs_it(
    process_container: Container, scplan: Scplan, shared: Path, name: str, words: tuple[str, ...]
) -> None:
    web = process_container
    asked = of(web, mounts=[f"{shared}:/srv/data:ro"])
    scplan("apply", "--auto-approve", config=asked).ok()
    before = fingerprint([web])
    inside(web, *words)
    (drifted,) = scplan("drift", "--json", config=asked).ok().json["drifted"]
    assert name in drifted["changed"]
    scplan("apply", "--auto-approve", config=asked).ok()
    assert scplan("drift", "--json", config=asked).ok().json["drifted"] == []
    assert difference(before, fingerprint([web])) == []


def test_what_the_host_mounts_later_below_a_read_only_mount_is_drift(
    process_container: Container, scplan: Scplan, shared: Path
) -> None:
    web = process_container
    asked = of(web, mounts=[f"{shared}:/srv/data:ro"])
    scplan("apply", "--auto-approve", config=asked).ok()
    mount("-t", "tmpfs", "later", str(shared / "place"))
    (drifted,) = scplan("drift", "--json", config=asked).ok().json["drifted"]
    assert drifted["changed"] == ["read_only"]
    scplan("apply", "--auto-approve", config=asked).ok()
    assert web.exec(["sh", "-c", "echo > /srv/data/place/file"]).returncode != 0


@pytest.mark.parametrize("word", ["ro", "rw"])
def test_target_in_another_entry_is_made_there(web: Container, scplan: Scplan, host_directory: Path, word: str) -> None:
    for name in ("outer", "inner"):
        (host_directory / name).mkdir()
        (host_directory / name).chmod(0o777)
    asked = of(web, mounts=[f"{host_directory}/outer:/srv/data:{word}", f"{host_directory}/inner:/srv/data/deep/in:rw"])
    before = fingerprint([web])
    scplan("apply", "--auto-approve", config=asked).ok()
    web.exec(["sh", "-c", "echo > /srv/data/deep/in/file"], check=True)
    assert scplan("plan", "--json", config=asked).ok().json["changes"] == []
    scplan("apply", "--auto-approve", config=of(web, mounts=[])).ok()
    assert difference(before, fingerprint([web])) == []
    assert os.listdir(host_directory / "outer") == []


def test_target_below_a_symlinked_directory_is_made_where_that_leads(
    web: Container, scplan: Scplan, host_directory: Path
) -> None:
    web.exec(["sh", "-c", "mkdir /srv/run && ln -s /srv/run /srv/link"], check=True)
    asked = of(web, mounts=[f"{host_directory}:/srv/link/deep/data"])
    scplan("apply", "--auto-approve", config=asked).ok()
    assert "/srv/run/deep/data" in web.mount_points()
    assert scplan("plan", "--json", config=asked).ok().json["changes"] == []
    scplan("apply", "--auto-approve", config=of(web, mounts=[])).ok()
    assert web.exec(["ls", "/srv/run"], check=True).stdout == ""


REFUSALS: dict[str, tuple[str, list[str], str]] = {
    "a file on a directory": ("mkdir /srv/there", ["{file}:/srv/there"], "is a file, but /srv/there"),
    "a directory on a file": ("echo > /srv/there", ["{directory}:/srv/there"], "is a directory, but /srv/there"),
    "a symlink": ("ln -s /tmp /srv/there", ["{directory}:/srv/there"], "is a symlink in the container"),
    "below a file": ("echo > /srv/there", ["{directory}:/srv/there/in"], "is no directory"),
    "below a broken link": ("ln -s /nowhere /srv/there", ["{directory}:/srv/there/in"], "leads nowhere"),
    "into the kernel's": ("ln -s /proc /srv/there", ["{directory}:/srv/there/in"], "belongs to the kernel"),
    "the same place": (
        "mkdir /srv/a && ln -s /srv/a /srv/b",
        ["{directory}:/srv/a/in", "{directory}:/srv/b/in"],
        "are the same place",
    ),
    "below another by a link": (
        "mkdir -p /srv/a/deep && ln -s /srv/a/deep /srv/b",
        ["{directory}:/srv/a", "{directory}:/srv/b/in"],
        "name the paths that they lead to",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_plan_refuses_what_can_not_be_mounted(
    process_container: Container, scplan: Scplan, host_directory: Path, what: str
) -> None:
    web = process_container
    script, mounts, words = REFUSALS[what]
    (host_directory / "file").write_text("")
    (host_directory / "directory").mkdir()
    web.exec(["sh", "-c", script], check=True)
    paths = {"file": str(host_directory / "file"), "directory": str(host_directory / "directory")}
    asked = of(web, mounts=[one.format(**paths) for one in mounts])
    with nothing_changed(web):
        ran = scplan("plan", "--json", config=asked).ok(1)
        assert words in ran.stdout + ran.stderr
        assert "scplan.yaml:" in ran.stderr or '"line"' in ran.stdout


def test_plan_refuses_targets_in_what_is_read_only(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    web = process_container
    web.exec(["sh", "-c", "mkdir /srv/there"], check=True)
    inside(web, "mount", "-t", "tmpfs", "-o", "ro", "others", "/srv/there")
    ran = scplan("plan", config=of(web, mounts=[f"{host_directory}:/srv/there/in"])).ok(1)
    assert "can't be made" in ran.stderr


def test_entry_below_one_that_is_shared_with_the_host_is_refused(
    process_container: Container, scplan: Scplan, shared: Path, host_directory: Path
) -> None:
    outer = {"source": str(shared), "target": "/srv/data", "propagation": "rshared"}
    ran = scplan("plan", config=of(process_container, mounts=[outer, f"{host_directory}:/srv/data/place"])).ok(1)
    assert "would be mounted on the host too" in ran.stderr


def test_what_was_kept_by_a_killed_apply_is_released(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    """It was killed after its journal had ended."""
    from scplan.linux.mounts.parking import kept_by, park, place_of
    from scplan.linux.paths.rooted_path import opened
    from scplan.linux.syscalls import open_tree

    state_dir = str(scplan.state_dir)
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 50})).ok()
    with opened(open_tree(str(host_directory), recursive=True)) as tree:
        park(tree, place_of(state_dir, "20260101T000000.000000000-1", "one"), 0)
    assert kept_by(state_dir) == ["20260101T000000.000000000-1"]
    scplan("recover").ok()
    assert kept_by(state_dir) == []
    assert os.path.isdir(host_directory)


def test_made_directories_come_back_as_they_were(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    web, source = process_container, host_directory / "made" / "deep"
    entry = {"source": str(source), "target": "/srv/made/target", "create_source": True}
    scplan("apply", "--auto-approve", config=of(web, mounts=[entry])).ok()
    web.exec(["sh", "-c", "chown 7:8 /srv/made && chmod 2750 /srv/made"], check=True)
    os.chown(source.parent, 1000, 1001)
    source.parent.chmod(0o1711)
    os.setxattr(source, "user.kept", b"yes")
    scplan("apply", "--auto-approve", "--probe", "false", config=of(web, mounts=[])).ok(3)
    assert web.exec(["stat", "-c", "%a %u:%g", "/srv/made"], check=True).stdout == "2750 7:8\n"
    assert (source.parent.stat().st_uid, source.parent.stat().st_mode & 0o7777) == (1000, 0o1711)
    assert os.getxattr(source, "user.kept") == b"yes"

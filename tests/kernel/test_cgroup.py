"""Cgroup settings of real containers: what was there before comes back exactly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scplan.errors import ScplanError
from scplan.kinds.cgroup import CgroupKind, CgroupSetting
from scplan.kinds.kind import Target, Unsuitable
from scplan.linux.container import Container
from scplan.linux.host import Host
from scplan.model.address import Address
from scplan.model.change import Action, Change
from tests.containers import container as throwaway

KIND = CgroupKind()

pytestmark = pytest.mark.needs("root", "busybox", "cgroup1")


@pytest.fixture
def target(process_container: throwaway.Container) -> Iterator[Target[CgroupSetting]]:
    with Host() as host, Container(process_container.name, process_container.pid, 0, host) as container:
        yield Target(container=container, host=host, peers={})


@pytest.mark.parametrize("shares", ["2", "28", "1000", "1024", "262143", "262144"])
def test_shares_come_back_exactly(
    process_container: throwaway.Container, target: Target[CgroupSetting], shares: str
) -> None:
    file = process_container.cgroups["cpu"] / "cpu.shares"
    file.write_text(shares)
    live = KIND.read(target.container, target.host, {"cpu.weight": CgroupSetting(name="cpu.weight", value="1")})
    after = KIND.capture(target, None, CgroupSetting(name="cpu.weight", value="500"))[1]
    assert after is not None
    KIND.create(target, after)
    assert file.read_text().strip() != shares
    KIND.delete(target, after)
    assert file.read_text().strip() == shares
    assert KIND.is_given_back(after, live["cpu.weight"])


def test_another_weight_is_not_given_back() -> None:
    removed = CgroupSetting(name="cpu.weight", value="500", former="cpu.shares 1000")
    assert KIND.is_given_back(removed, CgroupSetting(name="cpu.weight", value="39"))
    assert not KIND.is_given_back(removed, CgroupSetting(name="cpu.weight", value="40"))


def test_cgroup_of_any_name_is_found(process_container: throwaway.Container, target: Target[CgroupSetting]) -> None:
    own = process_container.cgroups["pids"]
    odd = own / "a\rb\x0bc\u2028d:e"
    odd.mkdir()
    try:
        (odd / "cgroup.procs").write_text(str(process_container.pid))
        assert target.container.cgroup_path("pids") == f"/{own.name}/{odd.name}"
        assert target.container.cgroup_path("memory") == f"/{own.name}"
    finally:
        (own / "cgroup.procs").write_text(str(process_container.pid))
        odd.rmdir()


class Settings:
    """The container's settings as an apply changes them one by one; `take_back` undoes all of it, newest first."""

    def __init__(self, target: Target[CgroupSetting], peers: dict[str, CgroupSetting]) -> None:
        self.target, self.peers = target, peers
        self.made: list[tuple[CgroupSetting | None, CgroupSetting | None, CgroupSetting | None]] = []

    def live(self, name: str) -> CgroupSetting:
        wanted = {**self.peers, name: self.peers.get(name, CgroupSetting(name=name, value="?"))}
        return KIND.read(self.target.container, self.target.host, wanted)[name]

    def set(self, name: str, value: str) -> None:
        owned = self.peers.get(name)
        former = {} if owned is None else {"former": owned.former, "former_files": owned.former_files}
        before = None if owned is None else self.live(name).replace(**former)
        before, after = KIND.capture(self.target, before, CgroupSetting(name=name, value=value).replace(**former))
        assert after is not None
        self.made.append((before, after, owned))
        (KIND.create(self.target, after) if before is None else KIND.update(self.target, before, after))
        self.peers[name] = after
        if self.live(name).value != value:
            raise ScplanError(f"{name} is {self.live(name).value}, not {value}")

    def unset(self, name: str) -> None:
        owned = self.peers[name]
        before, _ = KIND.capture(self.target, owned.replace(value=self.live(name).value), None)
        assert before is not None
        self.made.append((before, None, owned))
        KIND.delete(self.target, before)
        del self.peers[name]

    def take_back(self) -> None:
        for before, after, owned in reversed(self.made):
            if before is None:
                assert after is not None
                KIND.delete(self.target, after)
            elif after is None:
                KIND.create(self.target, before)
            else:
                KIND.update(self.target, after, before)
            name = (before or after or CgroupSetting(name="", value="")).name
            self.peers.pop(name, None)
            if owned is not None:
                self.peers[name] = owned
        self.made = []


@pytest.fixture
def settings(process_container: throwaway.Container) -> Iterator[Settings]:
    peers: dict[str, CgroupSetting] = {}
    with Host() as host, Container(process_container.name, process_container.pid, 0, host) as container:
        yield Settings(Target(container=container, host=host, peers=peers), peers)


FILES = {
    "cpu": ("cpu.shares", "cpu.idle"),
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
}


def _files(container: throwaway.Container) -> dict[str, str]:
    return {
        file: (container.cgroups[controller] / file).read_text().strip()
        for controller, files in FILES.items()
        for file in files
    }


M = 1 << 20
STEPS = {
    "weight, then idle": [("cpu.weight", "200"), ("cpu.idle", "1")],
    "idle, then weight": [("cpu.idle", "1"), ("cpu.weight", "200")],
    "idle ends": [("cpu.idle", "1"), ("cpu.weight", "200"), ("cpu.idle", None)],
    "idle becomes 0": [("cpu.weight", "200"), ("cpu.idle", "1"), ("cpu.idle", "0")],
    "weight goes first": [("cpu.idle", "1"), ("cpu.weight", "200"), ("cpu.weight", None), ("cpu.idle", None)],
    "memory, then swap": [("memory.max", str(256 * M)), ("memory.swap.max", str(64 * M))],
    "both anew": [("memory.max", str(256 * M)), ("memory.swap.max", str(64 * M)), ("memory.swap.max", str(128 * M))],
    "both fall": [("memory.max", str(256 * M)), ("memory.swap.max", str(64 * M)), ("memory.max", str(32 * M))],
    "no swap": [("memory.max", str(32 * M)), ("memory.swap.max", "0")],
    "no limit": [("memory.swap.max", "max"), ("memory.max", "max"), ("memory.swap.max", None)],
}
BEGINNINGS = {
    "a new cgroup": {},
    "a runtime's limits": {
        "memory.limit_in_bytes": str(64 * M),
        "memory.memsw.limit_in_bytes": str(128 * M),
        "cpu.shares": "1000",
    },
    "idle": {"cpu.idle": "1"},
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
def test_settings_that_depend_on_each_other_are_taken_and_return_raw(
    process_container: throwaway.Container,
    settings: Settings,
    beginning: dict[str, str],
    steps: list[tuple[str, str | None]],
) -> None:
    for file, text in beginning.items():
        (process_container.cgroups[file.partition(".")[0]] / file).write_text(text)
    before = _files(process_container)
    for name, value in steps:
        (settings.unset(name) if value is None else settings.set(name, value))
    for name, setting in settings.peers.items():
        assert settings.live(name).value == setting.value
    settings.take_back()
    assert _files(process_container) == before

    for name, value in steps:
        if value is not None:
            settings.set(name, value)
    for name in [*settings.peers]:
        settings.unset(name)
    assert _files(process_container) == before


def test_swap_is_counted_on_top_of_memory(process_container: throwaway.Container, settings: Settings) -> None:
    settings.set("memory.max", str(64 * M))
    settings.set("memory.swap.max", str(32 * M))
    assert _files(process_container)["memory.memsw.limit_in_bytes"] == str(96 * M)
    settings.set("memory.max", str(48 * M))
    assert _files(process_container)["memory.memsw.limit_in_bytes"] == str(80 * M)


def test_what_others_set_meanwhile_stays(process_container: throwaway.Container, settings: Settings) -> None:
    both = process_container.cgroups["memory"] / "memory.memsw.limit_in_bytes"
    settings.set("memory.max", str(64 * M))
    both.write_text(str(96 * M))
    settings.set("memory.max", str(80 * M))
    settings.take_back()
    assert int(both.read_text()) == 96 * M or int(both.read_text()) > 1 << 60


@pytest.mark.parametrize(("file", "text"), [("cpu.shares", "2602"), ("cpu.idle", "1")])
def test_a_weight_that_is_not_in_force_any_more_shows(
    process_container: throwaway.Container, settings: Settings, file: str, text: str
) -> None:
    settings.set("cpu.weight", "100")
    (process_container.cgroups["cpu"] / file).write_text(text)
    assert settings.live("cpu.weight").value != "100"
    settings.set("cpu.weight", "100")


def _foreseen(settings: Settings, **wanted: str) -> Unsuitable | None:
    names = {name.replace("_", "."): value for name, value in wanted.items()}
    after = {Address("web", "cgroup", name): CgroupSetting(name=name, value=value) for name, value in names.items()}
    changes = [
        Change(
            order=1,
            address=address,
            action=Action.CREATE,
            reason="",
            before=None,
            after=setting,
            managed=setting,
            owned=None,
        )
        for address, setting in after.items()
    ]
    found = list(KIND.foresee(settings.target.container, settings.target.host, changes, after))
    return found[0].refused if found else None


def _is_taken(settings: Settings, **wanted: str) -> bool:
    try:
        for name, value in wanted.items():
            settings.set(name.replace("_", "."), value)
    except ScplanError:
        return False
    return True


@pytest.mark.parametrize(
    "wanted",
    [
        {"cpuset_cpus": "0"},
        {"cpuset_cpus": "4095"},
        {"cpuset_mems": "63"},
        {"memory_max": str(100 * M)},
        {"memory_max": str(256 * M)},
        {"memory_max": "max"},
        {"memory_max": "max", "memory_swap_max": "max"},
        {"memory_max": "max", "memory_swap_max": str(5 * M)},
        {"memory_max": str(256 * M), "memory_swap_max": "0"},
        {"memory_max": str(32 * M), "memory_swap_max": str(256 * M)},
        {"cpu_max": "150000 100000"},
        {"cpu_max": "50000 100000"},
        {"cpu_max": "max 50000"},
        {"cpu_max": "20000 100000"},
    ],
    ids=repr,
)
def test_plans_refuse_what_the_kernel_refuses(
    process_container: throwaway.Container, settings: Settings, wanted: dict[str, str]
) -> None:
    """The cgroup has limits of its own, as has one inside it."""
    groups = process_container.cgroups
    (groups["memory"] / "memory.limit_in_bytes").write_text(str(64 * M))
    (groups["memory"] / "memory.memsw.limit_in_bytes").write_text(str(128 * M))
    (groups["cpu"] / "cpu.cfs_quota_us").write_text("100000")
    inner = groups["cpu"] / "inner"
    inner.mkdir()
    try:
        (inner / "cpu.cfs_quota_us").write_text("30000")
        (groups["cpu"] / "cpu.cfs_quota_us").write_text("-1")
        refused = _foreseen(settings, **wanted)
        if refused is not None and "memory_max" in wanted and "memory_swap_max" not in wanted:
            return  # the kernel would take memory+swap, which nobody asked for
        assert _is_taken(settings, **wanted) == (refused is None)
        assert refused is None or refused.hint
    finally:
        inner.rmdir()


def test_cpus_that_a_cgroup_inside_needs_are_not_taken(
    process_container: throwaway.Container, settings: Settings
) -> None:
    own = process_container.cgroups["cpuset"]
    if (own / "cpuset.cpus").read_text().strip() != "0-1":
        pytest.skip("takes a host with two CPUs")
    inner = own / "init.scope"
    inner.mkdir()
    try:
        for file in ("cpuset.cpus", "cpuset.mems"):
            (inner / file).write_text((own / file).read_text())
        refused = _foreseen(settings, cpuset_cpus="0")
        assert refused is not None
        assert "init.scope" in str(refused)
        assert "CPUs 1" in str(refused)
        with pytest.raises(ScplanError, match="EBUSY") as raised:
            settings.set("cpuset.cpus", "0")
        assert "a cgroup inside the container" in raised.value.diagnostics[0].hint
    finally:
        inner.rmdir()

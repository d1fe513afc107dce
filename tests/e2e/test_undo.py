"""`scplan undo`: live state and records are as before the last apply; and the history that it comes from."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scplan.store.durable import decode_line
from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.fingerprint import Fingerprint, difference, fingerprint
from tests.containers.host_parts import LoopDisk, Nic
from tests.containers.session import Session
from tests.e2e.scene import Config, address, config, everything, nothing_changed, of, planned, refused

pytestmark = pytest.mark.needs("cgroup1")

Change = Callable[[dict[str, Any]], None]


def records(scplan: Scplan) -> dict[str, Any]:
    """What scplan owns, by container and address; without the messages of a lent NIC, which hold times."""
    found = {
        path.stem: decode_line(path.read_bytes(), str(path))["resources"]
        for path in scplan.state_dir.glob("containers/*/*.json")
    }
    for resources in found.values():
        for resource in resources.values():
            resource.pop("host_state", None)
    return found


class Moment:
    """Live state and records at one time."""

    def __init__(self, scplan: Scplan, *containers: Container) -> None:
        self.scplan = scplan
        self.containers = containers
        self.live: Fingerprint = fingerprint(containers)
        self.records = records(scplan)

    def is_now(self) -> None:
        assert difference(self.live, fingerprint(self.containers)) == []
        assert records(self.scplan) == self.records


def undo(scplan: Scplan) -> None:
    scplan("undo", "--auto-approve").ok()


@pytest.fixture
def applied(
    process_container: Container, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path
) -> Config:
    asked = everything(process_container, loop_disk, bridge, host_directory)
    scplan("apply", "--auto-approve", config=asked).ok()
    return asked


@pytest.mark.parametrize("runtime", ["runc", "process"])
def test_undo_of_everything_and_its_redo(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk, bridge: str, host_directory: Path, runtime: str
) -> None:
    web = make_container(runtime)
    before = Moment(scplan, web)
    scplan("apply", "--auto-approve", config=everything(web, loop_disk, bridge, host_directory)).ok()
    after = Moment(scplan, web)
    undo(scplan)
    before.is_now()
    undo(scplan)
    after.is_now()
    scplan("plan", "--detailed-exitcode").ok()
    undo(scplan)
    before.is_now()


@pytest.mark.usefixtures("applied")
def test_undo_of_destroy(process_container: Container, scplan: Scplan) -> None:
    after = Moment(scplan, process_container)
    scplan("destroy", process_container.name, "--auto-approve").ok()
    undo(scplan)
    after.is_now()
    scplan("plan", "--detailed-exitcode").ok()


def replace_mount(sections: dict[str, Any]) -> None:
    sections["mounts"] = ["/etc:/srv/data:ro"]


def rename_host_end(sections: dict[str, Any]) -> None:
    sections["nics"][0]["host_name"] = "sctrenamed0"


def update_all(sections: dict[str, Any]) -> None:
    sections["devices"][0] |= {"permissions": "rw", "mode": "0600", "io": {"read_bps": "1m"}}
    sections["nics"][0] |= {"mtu": 1450, "addresses": ["10.97.0.5/24", "10.97.0.6/24"]}
    sections["routes"][0]["via"] = "10.97.0.2"
    sections["mounts"][0] = sections["mounts"][0].removesuffix(":ro")
    sections["cgroup"]["memory.max"] = "80MiB"


def drop_some(sections: dict[str, Any]) -> None:
    del sections["devices"], sections["routes"][1], sections["mounts"]
    del sections["cgroup"]["pids.max"], sections["nics"][0]["mtu"]


def set_more(sections: dict[str, Any]) -> None:
    sections["nics"][0]["txqueuelen"] = 500
    sections["cgroup"]["cpu.weight"] = 50


@pytest.mark.parametrize(
    "change", [replace_mount, rename_host_end, update_all, drop_some, set_more], ids=lambda change: change.__name__
)
def test_undo_of_a_change(process_container: Container, scplan: Scplan, applied: Config, change: Change) -> None:
    before = Moment(scplan, process_container)
    (sections,) = applied["containers"].values()
    change(sections)
    scplan("apply", "--auto-approve", config=applied).ok()
    after = Moment(scplan, process_container)
    undo(scplan)
    before.is_now()
    undo(scplan)
    after.is_now()


@pytest.mark.parametrize("later", [None, "99"], ids=["since the start", "changed since"])
@pytest.mark.parametrize("asked", [{"cpu.idle": 1}, {"cpu.idle": 1, "cpu.weight": 50}], ids=["idle", "with a weight"])
def test_undo_of_idle_gives_back_shares_that_the_kernel_did_not_keep(
    process_container: Container, scplan: Scplan, asked: dict[str, int], later: str | None
) -> None:
    shares = process_container.cgroups["cpu"] / "cpu.shares"
    shares.write_text("77")
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"cpu.idle": 0})).ok()
    if later is not None:
        shares.write_text(later)
    before = Moment(scplan, process_container)
    scplan("apply", "--auto-approve", config=of(process_container, cgroup=asked)).ok()
    undo(scplan)
    before.is_now()
    undo(scplan)
    undo(scplan)
    before.is_now()


@pytest.mark.parametrize("shares", [None, "77"])
def test_undo_makes_a_cgroup_idle_again(process_container: Container, scplan: Scplan, shares: str | None) -> None:
    if shares is not None:
        (process_container.cgroups["cpu"] / "cpu.shares").write_text(shares)
    asked = of(process_container, cgroup={"cpu.idle": 1, "cpu.weight": 900})
    scplan("apply", "--auto-approve", config=asked).ok()
    before = Moment(scplan, process_container)
    asked = of(process_container, cgroup={"cpu.idle": 0, "cpu.weight": 100})
    scplan("apply", "--auto-approve", config=asked).ok()
    undo(scplan)
    before.is_now()


def test_idle_that_ends_gives_the_shares_of_before(process_container: Container, scplan: Scplan) -> None:
    shares = process_container.cgroups["cpu"] / "cpu.shares"
    shares.write_text("77")
    for idle in (0, 1, 0):
        scplan("apply", "--auto-approve", config=of(process_container, cgroup={"cpu.idle": idle})).ok()
    assert shares.read_text().strip() == "77"


def test_undo_of_an_adoption_leaves_what_was_there(process_container: Container, scplan: Scplan) -> None:
    (process_container.cgroups["pids"] / "pids.max").write_text("77")
    inside = ["nsenter", "--target", str(process_container.pid), "--net", "ip"]
    subprocess.run([*inside, "link", "add", "eth9", "type", "veth", "peer", "name", "eth8"], check=True)
    subprocess.run([*inside, "link", "set", "eth9", "up"], check=True)
    subprocess.run([*inside, "route", "add", "10.98.0.0/16", "dev", "eth9"], check=True)
    before = Moment(scplan, process_container)
    asked = of(process_container, cgroup={"pids.max": 77}, routes=[{"to": "10.98.0.0/16", "dev": "eth9"}])
    assert set(planned(scplan("plan", "--json", config=asked).ok()).values()) == {"adopt"}
    scplan("apply", "--auto-approve").ok()
    ran = scplan("undo", "--auto-approve").ok()
    assert "2 to release" in ran.stdout
    assert "scplan's no longer" in ran.stdout
    before.is_now()
    undo(scplan)
    assert set(records(scplan)[process_container.name]) == {"cgroup/pids.max", "route/10.98.0.0/16"}


def test_undo_of_a_record_that_was_only_brought_up_to_date(process_container: Container, scplan: Scplan) -> None:
    nic = {"name": "eth1"}
    scplan("apply", "--auto-approve", config=of(process_container, nics=[nic])).ok()
    before = Moment(scplan, process_container)
    scplan("apply", "--auto-approve", config=of(process_container, nics=[{**nic, "mtu": 1500}])).ok()
    assert records(scplan) != before.records
    undo(scplan)
    before.is_now()


def test_undo_gives_a_physical_nic_back_and_takes_it_again(
    process_container: Container, scplan: Scplan, veth_pair: Nic
) -> None:
    subprocess.run(["ip", "link", "set", veth_pair.name, "mtu", "1460"], check=True)
    before = Moment(scplan, process_container)
    nic = {"name": "eth1", "type": "physical", "host_name": veth_pair.name, "mtu": 1400}
    scplan("apply", "--auto-approve", config=of(process_container, nics=[nic])).ok()
    after = Moment(scplan, process_container)
    undo(scplan)
    before.is_now()
    undo(scplan)
    after.is_now()


def test_undo_in_two_containers(make_container: MakeContainer, scplan: Scplan, bridge: str) -> None:
    web, db = make_container("process"), make_container("process")
    before = Moment(scplan, web, db)
    nics = [{"name": "eth1", "bridge": bridge}]
    asked = config((web, {"nics": nics}), (db, {"nics": nics, "cgroup": {"pids.max": 50}}))
    scplan("apply", "--auto-approve", config=asked).ok()
    undo(scplan)
    before.is_now()


def test_what_others_changed_since_is_in_the_plan(process_container: Container, scplan: Scplan) -> None:
    before = Moment(scplan, process_container)
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 100})).ok()
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 200})).ok()
    (process_container.cgroups["pids"] / "pids.max").write_text("300")
    ran = scplan("undo", "--auto-approve", "--json").ok()
    (change,) = ran.events[0]["plan"]["changes"]
    assert (change["before"]["value"], change["after"]["value"]) == ("300", "100")
    assert "outside scplan" in change["reason"]
    assert process_container.cgroup_file("pids.max").strip() == "100"
    scplan("destroy", process_container.name, "--auto-approve").ok()
    before.is_now()


DRIFT = {
    "queue of the host end": "ip link set {end} txqueuelen 55",
    "MTU of the host end": "ip link set {end} mtu 1390",
    "host end down": "ip link set {end} down",
    "queue": "nsenter -n -t {pid} ip link set eth1 txqueuelen 55",
    "MTU": "nsenter -n -t {pid} ip link set eth1 mtu 1390",
    "MAC": "nsenter -n -t {pid} ip link set eth1 address 02:00:00:00:00:77",
    "an address": "nsenter -n -t {pid} ip addr del 10.41.0.5/24 dev eth1",
}


@pytest.mark.parametrize("drift", DRIFT)
def test_a_nic_that_had_drifted_before_it_was_removed(
    process_container: Container, scplan: Scplan, bridge: str, session: Session, drift: str
) -> None:
    """What the file says of it comes back as it was, and what is promised of the host end as it was recorded."""
    web, end = process_container, session.name()
    nic = {"name": "eth1", "bridge": bridge, "host_name": end, "txqueuelen": 100, "mtu": 1400}
    asked = of(web, nics=[nic | {"mac": "02:5c:41:00:00:01", "addresses": ["10.41.0.5/24"]}])
    scplan("apply", "--auto-approve", config=asked).ok()
    subprocess.run(DRIFT[drift].format(end=end, pid=web.pid), shell=True, check=True)
    before = fingerprint([web])
    scplan("destroy", web.name, "--auto-approve").ok()
    undo(scplan)
    if drift.endswith("of the host end"):
        scplan("plan", "--detailed-exitcode", config=asked).ok()
    else:
        assert difference(before, fingerprint([web])) == []
    scplan("destroy", web.name, "--auto-approve").ok()


def test_undo_asks(process_container: Container, scplan: Scplan) -> None:
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 100})).ok()
    with nothing_changed(process_container):
        refused(scplan("undo"), "needs approval", code=7)
        assert scplan("undo", "--json").ok(7).events[-1]["result"] == "declined"


def test_undo_that_fails_is_rolled_back(process_container: Container, scplan: Scplan, host_directory: Path) -> None:
    asked = of(process_container, mounts=[f"{host_directory}:/srv/data"], cgroup={"pids.max": 100})
    scplan("apply", "--auto-approve", config=asked).ok()
    user = subprocess.Popen(
        ["nsenter", "--target", str(process_container.pid), "--mount", "sh", "-c", "cd /srv/data && echo in && read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert user.stdout
    assert user.stdin
    assert user.stdout.readline() == b"in\n"
    after = Moment(scplan, process_container)
    try:
        refused(scplan("undo", "--auto-approve"), "EBUSY", code=3)
        after.is_now()
    finally:
        user.stdin.close()
        user.wait(timeout=10)
    undo(scplan)
    assert records(scplan) == {}


# when there is nothing to undo, or it can't be done


def test_nothing_to_undo(process_container: Container, scplan: Scplan) -> None:
    refused(scplan("undo", "--auto-approve"), "nothing to undo")
    asked = {**of(process_container, cgroup={"pids.max": 100}), "probes": ["false"]}
    scplan("apply", "--auto-approve", config=asked).ok(3)
    refused(scplan("undo", "--auto-approve"), "nothing to undo")


def test_apply_that_only_healed_leaves_nothing_to_undo(process_container: Container, scplan: Scplan) -> None:
    limit = process_container.cgroups["pids"] / "pids.max"
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 60})).ok()
    limit.write_text("61\n")
    scplan("apply", "--auto-approve").ok()
    with nothing_changed(process_container):
        ran = scplan("undo", "--auto-approve").ok()
    assert ran.stdout.strip() == "No changes."
    last = json.loads(scplan("state", "history", "--json").ok().stdout)["applies"][0]
    assert f"nothing to take back of the last apply, {last['apply_id']}" in ran.stderr
    assert limit.read_text() == "60\n"


def test_apply_that_was_rolled_back_is_passed_over(process_container: Container, scplan: Scplan) -> None:
    before = Moment(scplan, process_container)
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 100})).ok()
    asked = {**of(process_container, cgroup={"pids.max": 200}), "probes": ["false"]}
    scplan("apply", "--auto-approve", config=asked).ok(3)
    undo(scplan)
    before.is_now()


@pytest.mark.needs("runc")
def test_container_that_is_gone_is_started_without_it(session: Session, scplan: Scplan) -> None:
    with session.container("runc") as web:
        scplan("apply", "--auto-approve", config=of(web, cgroup={"pids.max": 100})).ok()
    assert "1 of them at next start" in scplan("undo", "--auto-approve").ok().stdout
    assert records(scplan) == {}


@pytest.mark.needs("runc")
def test_undo_after_the_container_was_started_again(runc_container: Container, scplan: Scplan, bridge: str) -> None:
    nics = [{"name": "eth1", "bridge": bridge, "addresses": ["10.97.0.5/24"]}]
    scplan("apply", "--auto-approve", config=of(runc_container, nics=nics)).ok()
    routes = [{"to": "default", "via": "10.97.0.1"}]
    scplan("apply", "--auto-approve", config=of(runc_container, nics=nics, routes=routes)).ok()
    runc_container.stop()
    runc_container.start()
    undo(scplan)
    assert set(records(scplan)[runc_container.name]) == {"nic/eth1"}
    scplan("apply", "--auto-approve", config=of(runc_container, nics=nics)).ok()
    scplan("plan", "--detailed-exitcode").ok()


def test_damaged_history_is_told_and_never_guessed_at(process_container: Container, scplan: Scplan) -> None:
    for limit in (100, 200):
        scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": limit})).ok()
    newest = max((scplan.state_dir / "history").glob("*.jsonl"))
    newest.write_bytes(newest.read_bytes()[:50] + b"\n")
    with nothing_changed(process_container):
        refused(scplan("undo", "--auto-approve"), "the history is damaged", str(newest))
    applies = scplan("state", "history", "--json").ok().json["applies"]
    assert [one["outcome"] for one in applies] == ["unreadable", "committed"]
    assert "damaged" in applies[0]["problem"]
    newest.rename(newest.with_suffix(".away"))
    scplan("undo", "--auto-approve").ok()
    assert scplan("state", "list").ok().stdout == ""


def test_source_that_is_gone_is_named(process_container: Container, scplan: Scplan, host_directory: Path) -> None:
    source = host_directory / "data"
    source.mkdir()
    scplan("apply", "--auto-approve", config=of(process_container, mounts=[f"{source}:/srv/data"])).ok()
    scplan("destroy", process_container.name, "--auto-approve").ok()
    source.rmdir()
    with nothing_changed(process_container):
        refused(scplan("undo", "--auto-approve"), str(source), address(process_container, "mount/srv/data"))


# the history


def test_history_says_who_did_what(process_container: Container, scplan: Scplan) -> None:
    scplan.environment["SUDO_USER"] = "operator"
    files = [scplan.write(of(process_container, cgroup={"pids.max": 100})), scplan.write("version: 1\n", "more.yaml")]
    scplan("apply", "--auto-approve", "-f", "scplan.yaml", "-f", "more.yaml").ok()
    scplan.write(
        {"containers": of(process_container, cgroup={"pids.max": "0100"})["containers"], "version": 1}, "same.yaml"
    )
    undo(scplan)
    scplan("apply", "--auto-approve", "-f", "same.yaml").ok()
    third, second, first = scplan("state", "history", "--json").ok().json["applies"]
    assert (first["user"], first["uid"]) == ("operator", 0)
    assert first["command"] == ["scplan", "apply", "--auto-approve", "-f", "scplan.yaml", "-f", "more.yaml"]
    assert first["files"] == [str(file) for file in files]
    assert (first["outcome"], second["outcome"], third["outcome"]) == ("undone", "committed", "committed")
    assert second["undoes"] == first["apply_id"]
    assert first["configuration"].startswith("sha256:")
    assert second["configuration"] == ""
    assert first["containers"] == [process_container.name]
    assert (first["operations"], second["operations"]) == ({"create": 1}, {"delete": 1})
    assert first["begun"] <= first["ended"] <= second["begun"]
    (only,) = scplan("state", "history", "--json", "--limit", "1").ok().json["applies"]
    assert only == third
    lines = scplan("state", "history").ok().stdout.splitlines()
    assert lines[0].split()[:4] == ["APPLY", "TIME", "USER", "OUTCOME"]
    assert [line.split()[0] for line in lines[1:]] == [one["apply_id"] for one in (third, second, first)]


def test_history_says_what_was_rolled_back(process_container: Container, scplan: Scplan) -> None:
    asked = {**of(process_container, cgroup={"pids.max": 100}), "probes": ["false"]}
    scplan("apply", "--auto-approve", config=asked).ok(3)
    (past,) = scplan("state", "history", "--json").ok().json["applies"]
    assert past["outcome"] == "rolled_back"
    assert "rolled back" in scplan("state", "history").ok().stdout


def test_history_of_nothing(scplan: Scplan) -> None:
    assert scplan("state", "history").ok().stdout == "No apply yet.\n"
    assert scplan("state", "history", "--json").ok().json["applies"] == []


@pytest.mark.usefixtures("applied")
def test_journals_are_as_their_schema_says(scplan: Scplan) -> None:
    from tests.unit.test_formats import validator

    undo(scplan)
    check = validator("1.0", "journal")
    for path in (scplan.state_dir / "history").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            assert [error.message for error in check.iter_errors(json.loads(line.partition(" ")[2]))] == []


@pytest.mark.parametrize("promoted", ["0", "1"])
def test_primary_addresses_are_primary_again(scplan: Scplan, make_container: MakeContainer, promoted: str) -> None:
    """They are those from which packets go; with them the kernel drops the others of their network, or promotes one."""
    web = make_container("process")
    inside = ["nsenter", "--target", str(web.pid), "--net"]
    subprocess.run([*inside, "sysctl", "-qw", f"net.ipv4.conf.all.promote_secondaries={promoted}"], check=True)
    nic: dict[str, Any] = {"name": "eth1", "addresses": ["10.97.0.5/24", "10.97.0.6/24", "10.98.0.5/24", "fd97::5/64"]}
    route = {"to": "10.99.0.0/16", "via": "10.97.0.1", "src": "10.97.0.6"}
    scplan("apply", "--auto-approve", config=of(web, nics=[nic], routes=[route])).ok()
    web.ip("address", "add", "10.97.0.9/24", "dev", "eth1")
    before = Moment(scplan, web)
    fewer = of(web, nics=[{**nic, "addresses": ["10.98.0.7/24", "10.97.0.6/24"]}], routes=[route])
    scplan("apply", "--auto-approve", config={**fewer, "probes": ["false"]}).ok(3)
    before.is_now()
    scplan("apply", "--auto-approve", config=fewer).ok()
    undo(scplan)
    before.is_now()

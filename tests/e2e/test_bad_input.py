"""Every kind of bad input: a message with the place and a way out, the right exit code, and nothing is changed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.containers.host_parts import LoopDisk, Nic
from tests.e2e.scene import naming, nothing_changed, of, refused

pytestmark = pytest.mark.needs("cgroup1")

# what YAML itself may hold

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "empty": ("", ""),
    "scalar": ("just text\n", ""),
    "list": ("- a\n- b\n", ""),
    "unclosed": ("version: 1\ncontainers: {web: [\n", ""),
    "tab": ("version: 1\ncontainers:\n\tweb: {}\n", "scplan.yaml:3"),
    "duplicate key": ("version: 1\ncontainers: {}\nversion: 1\n", "scplan.yaml:3:1"),
    "alias bomb": (f"version: 1\nx-bomb:\n  {BOMB.replace(chr(10), chr(10) + '  ')}\n", "scplan.yaml:"),
    "alias of itself": ("version: 1\ncontainers: &a {web: *a}\n", "scplan.yaml:"),
    "undefined alias": ("version: 1\ncontainers: *nobody\n", "scplan.yaml:2"),
    "python tag": ("version: 1\ncontainers: !!python/object/apply:os.system ['touch pwned']\n", "scplan.yaml:2"),
    "unknown tag": ("version: 1\ncontainers: !vault {web: {}}\n", "scplan.yaml:2"),
    "binary": ("version: 1\ncontainers: \x00\x01\n", ""),
    "two documents": ("version: 1\n---\nversion: 1\n", "scplan.yaml:"),
    "deep": ("[" * 5000, ""),
    "deep blocks": ("".join(" " * depth + "a:\n" for depth in range(300)), ""),
    "no version": ("containers: {}\n", "version"),
    "newer version": ("version: 2\ncontainers: {}\n", "scplan.yaml:1"),
    "unknown key": ("version: 1\ncontainer: {}\n", 'did you mean "containers"'),
    "containers is a list": ("version: 1\ncontainers: [web]\n", "scplan.yaml:2"),
    "unknown runtime": ("version: 1\ncontainers: {web: {runtime: runk}}\n", 'did you mean "runc"'),
    "unknown profile": ("version: 1\ncontainers: {web: {profiles: [absent]}}\n", "absent"),
    "name with a slash": ("version: 1\ncontainers: {a/b: {}}\n", "a/b"),
    "process without pid": ("version: 1\ncontainers: {web: {runtime: process}}\n", "pid"),
    "pid of another runtime": ("version: 1\ncontainers: {web: {runtime: runc, pid: 1}}\n", "pid"),
    "pid of nothing": ("version: 1\ncontainers: {web: {runtime: process, pid: 0}}\n", "pid"),
    "huge number": ("version: 1\ncontainers: {web: {runtime: process, pid: 99999999999999999999}}\n", "pid"),
}


@pytest.mark.parametrize("case", FILES)
def test_malformed_file_is_refused_with_its_place(scplan: Scplan, case: str) -> None:
    text, said = FILES[case]
    ran = scplan("plan", config=text, timeout_s=20)
    refused(ran, "scplan.yaml", said)
    assert ran.stdout == ""
    assert not (scplan.directory / "pwned").exists()
    assert not scplan.state_dir.exists()


def test_files_that_are_not_text_are_refused(scplan: Scplan) -> None:
    for number, content in enumerate([b"\xff\xfe\x00", os.urandom(4096), b"version: \xe9\n", b"\xef\xbb\xbf\x00"]):
        path = scplan.directory / f"{number}.yaml"
        path.write_bytes(content)
        refused(scplan("plan", "-f", path.name), path.name)


def test_too_large_a_file_is_refused_quickly(scplan: Scplan) -> None:
    with (scplan.directory / "scplan.yaml").open("wb") as file:
        file.truncate(1 << 32)
    refused(scplan("plan", timeout_s=10), "scplan.yaml")


def test_all_errors_are_told_at_once_and_in_file_order(scplan: Scplan) -> None:
    text = """\
version: 1
containers:
  web:
    nics:
      - {name: eth0, mtuu: 1400}
      - {name: this-name-is-too-long, mtu: 5}
    routes:
      - {to: default}
      - {to: 10.0.0.0/8, via: 10.0.0}
    mounts:
      - /srv:/proc
    cgroup: {memory.maxx: 5}
    devices:
      - {source: relative, io: {read_bps: 10x}}
"""
    ran = scplan("validate", config=text)
    refused(ran, 'did you mean "mtu"', 'did you mean "memory.max"')
    lines = [int(row.split(":")[1]) for row in ran.stderr.splitlines() if row.startswith("scplan.yaml:")]
    assert lines == sorted(lines)
    assert set(lines) == {5, 6, 8, 9, 11, 12, 14}
    document = scplan("validate", "--json").ok(1).json
    assert document["valid"] is False
    assert len(document["diagnostics"]) == len(lines)


# values that the kernel would wrap or refuse

VALUES: dict[str, tuple[str, Any]] = {
    "iops over 32 bits": ("devices", {"source": "/dev/null", "io": {"read_iops": 2**32}}),
    "bps over 64 bits": ("devices", {"source": "/dev/null", "io": {"read_bps": "99999999999t"}}),
    "negative bps": ("devices", {"source": "/dev/null", "io": {"read_bps": -1}}),
    "weight": ("devices", {"source": "/dev/null", "io": {"weight": 9}}),
    "permissions": ("devices", "/dev/null:/dev/x:rwx"),
    "no permissions": ("devices", {"source": "/dev/null", "permissions": ""}),
    "mode": ("devices", {"source": "/dev/null", "mode": "9999"}),
    "uid": ("devices", {"source": "/dev/null", "uid": -1}),
    "relative source": ("devices", "dev/null"),
    "relative target": ("devices", {"source": "/dev/null", "target": "dev/null"}),
    "device onto /proc": ("devices", "/dev/null:/proc/x"),
    "device onto /sys": ("devices", "/dev/null:/sys/x"),
    "device onto /": ("devices", {"source": "/dev/null", "target": "/"}),
    "too many colons": ("devices", "/dev/null:/dev/x:rw:m"),
    "climbing target": ("devices", "/dev/null:/dev/../../etc/x"),
    "mtu 0": ("nics", {"name": "eth1", "mtu": 0}),
    "mtu 65536": ("nics", {"name": "eth1", "mtu": 65536}),
    "mtu too small for IPv6": ("nics", {"name": "eth1", "mtu": 1000, "addresses": ["fd00::1/64"]}),
    "mtu is a list": ("nics", {"name": "eth1", "mtu": [1500]}),
    "16 bytes of name": ("nics", {"name": "a234567890123456"}),
    "slash in a name": ("nics", {"name": "a/b"}),
    "space in a name": ("nics", {"name": "a b"}),
    "dot as a name": ("nics", {"name": ".."}),
    "lo": ("nics", {"name": "lo"}),
    "multicast MAC": ("nics", {"name": "eth1", "mac": "01:00:5e:00:00:01"}),
    "zero MAC": ("nics", {"name": "eth1", "mac": "00:00:00:00:00:00"}),
    "short MAC": ("nics", {"name": "eth1", "mac": "00:11:22:33:44"}),
    "prefix of 33": ("nics", {"name": "eth1", "addresses": ["10.0.0.1/33"]}),
    "address of 5 parts": ("nics", {"name": "eth1", "addresses": ["10.0.0.1.2/24"]}),
    "octal address": ("nics", {"name": "eth1", "addresses": ["010.0.0.1/24"]}),
    "multicast address": ("nics", {"name": "eth1", "addresses": ["224.0.0.1/24"]}),
    "unspecified address": ("nics", {"name": "eth1", "addresses": ["0.0.0.0/0"]}),
    "same address twice": ("nics", {"name": "eth1", "addresses": ["10.0.0.1/24", "10.0.0.1/16"]}),
    "unknown type": ("nics", {"name": "eth1", "type": "macvlan"}),
    "physical without host_name": ("nics", {"name": "eth1", "type": "physical"}),
    "queue": ("nics", {"name": "eth1", "txqueuelen": 2**31}),
    "route without hop": ("routes", {"to": "10.0.0.0/8"}),
    "mixed families": ("routes", {"to": "10.0.0.0/8", "via": "fd00::1"}),
    "metric": ("routes", {"to": "10.0.0.0/8", "via": "10.0.0.1", "metric": 2**32}),
    "local table": ("routes", {"to": "10.0.0.0/8", "via": "10.0.0.1", "table": 255}),
    "onlink without dev": ("routes", {"via": "10.0.0.1", "onlink": True}),
    "yes is no boolean": ("routes", {"via": "10.0.0.1", "dev": "eth1", "onlink": "maybe"}),
    "mount onto /": ("mounts", "/srv:/"),
    "mount onto /proc": ("mounts", "/srv:/proc"),
    "mount below /sys": ("mounts", "/srv:/sys/fs"),
    "mount without target": ("mounts", "/srv"),
    "unknown option": ("mounts", "/srv:/data:rx"),
    "contradicting options": ("mounts", "/srv:/data:ro,rw"),
    "propagation": ("mounts", {"source": "/srv", "target": "/data", "propagation": "everywhere"}),
    "NUL in a path": ("mounts", {"source": "/srv/\0", "target": "/data"}),
    "path of 5000 bytes": ("mounts", {"source": "/" + "a" * 5000, "target": "/data"}),
}
SETTINGS = {
    "unknown": {"memory.maxx": "1m"},
    "io": {"io.max": "8:0 rbps=1"},
    "memory": {"memory.max": "much"},
    "negative memory": {"memory.max": -1},
    "cpu": {"cpu.max": "50000 100000 3"},
    "cpu period": {"cpu.max": "50000 10"},
    "pids": {"pids.max": 2**40},
    "cpus": {"cpuset.cpus": "3-1"},
    "list": {"pids.max": [5]},
    "path": {"../../pids.max": 5},
}


def test_values_that_make_no_sense_are_refused_each_with_its_place(scplan: Scplan) -> None:
    sections = {case: {section: [value]} for case, (section, value) in VALUES.items()}
    sections |= {f"{case}, setting": {"cgroup": setting} for case, setting in SETTINGS.items()}
    # One container a line, so that the line of an error tells whose it is.
    rows = [
        f"  c{number}: {json.dumps({'runtime': 'process', 'pid': 4194304, **section})}"
        for number, section in enumerate(sections.values())
    ]
    ran = scplan("apply", "--auto-approve", config="\n".join(["version: 1", "containers:", *rows, ""]))
    refused(ran)
    told = {int(row.split(":")[1]) - 3 for row in ran.stderr.splitlines() if row.startswith("scplan.yaml:")}
    assert [case for number, case in enumerate(sections) if number not in told] == []
    assert not scplan.state_dir.exists()


# things that are not there, or not as they should be


def test_broken_references_are_told_all_at_once(
    process_container: Container, scplan: Scplan, host_directory: Path, veth_pair: Nic
) -> None:
    asked = of(
        process_container,
        devices=["/dev/absent", f"{host_directory}:/dev/x", {"source": "/dev/null", "io": {"read_bps": 1}}],
        nics=[
            {"name": "eth1", "bridge": "absent0"},
            {"name": "eth2", "bridge": veth_pair.name},
            {"name": "eth3", "type": "physical", "host_name": "absent1"},
        ],
        mounts=["/absent/source:/srv/data"],
    )
    with nothing_changed(process_container):
        ran = scplan("apply", "--auto-approve", config=asked)
        refused(
            ran,
            "the host has no /dev/absent",
            f"{host_directory} is a directory; an entry is for one device node",
            "/dev/null is not a whole disk",
            "the host has no bridge absent0",
            f"{veth_pair.name} is a link of the host, but not a bridge",
            "the host has no NIC absent1",
            "the host has no /absent/source",
        )
        lines = [int(row.split(":")[1]) for row in ran.stderr.splitlines() if row.startswith("scplan.yaml:")]
        assert len(lines) == 7
        assert lines == sorted(lines)


def test_things_that_need_not_be_there_are_warnings(process_container: Container, scplan: Scplan) -> None:
    asked = of(
        process_container,
        devices=[{"source": "/dev/absent", "required": False}],
        mounts=[{"source": "/absent/source", "target": "/srv/data", "required": False}],
        nics=[{"name": "eth1", "type": "physical", "host_name": "absent1", "required": False}],
        cgroup={"pids.max": 100},
    )
    ran = scplan("apply", "--auto-approve", config=asked).ok()
    assert ran.stderr.count("warning: ") == 3
    assert process_container.cgroup_file("pids.max").strip() == "100"


def test_route_over_a_nic_that_is_not_there_is_undone(process_container: Container, scplan: Scplan) -> None:
    asked = of(process_container, cgroup={"pids.max": 100}, routes=[{"to": "10.0.0.0/8", "dev": "eth7"}])
    with nothing_changed(process_container):
        ran = scplan("apply", "--auto-approve", config=asked)
        refused(ran, "eth7", code=ran.code)
        assert ran.code in (1, 3)


def test_nic_that_others_made_is_not_touched(process_container: Container, scplan: Scplan) -> None:
    inside = ["nsenter", "--target", str(process_container.pid), "--net", "ip"]
    subprocess.run([*inside, "link", "add", "eth1", "type", "veth", "peer", "name", "eth2"], check=True)
    with nothing_changed(process_container):
        asked = of(process_container, nics=[{"name": "eth1", "addresses": ["10.97.0.5/24"]}])
        ran = scplan("apply", "--auto-approve", config=asked)
        assert ran.code in (1, 3)
        refused(ran, "eth1", code=ran.code)


def test_name_taken_on_the_host_is_refused(process_container: Container, scplan: Scplan, veth_pair: Nic) -> None:
    asked = of(process_container, nics=[{"name": "eth1", "host_name": veth_pair.name}])
    with nothing_changed(process_container):
        refused(scplan("apply", "--auto-approve", config=asked), veth_pair.name, "scplan.yaml:")


def test_one_host_nic_for_two_containers_is_refused(
    make_container: MakeContainer, scplan: Scplan, veth_pair: Nic
) -> None:
    one, other = make_container("process"), make_container("process")
    nic = [{"name": "eth1", "type": "physical", "host_name": veth_pair.name}]
    with nothing_changed(one, other):
        asked = of(one, nics=nic)
        asked["containers"][other.name] = {**naming(other), "nics": nic}
        refused(scplan("apply", "--auto-approve", config=asked), veth_pair.name, "scplan.yaml:")
    scplan("apply", "--auto-approve", config=of(one, nics=nic)).ok()
    refused(scplan("apply", "--auto-approve", config=of(other, nics=nic)), veth_pair.name)


# containers


def test_container_that_no_runtime_knows(scplan: Scplan) -> None:
    ran = scplan("plan", config={"version": 1, "containers": {"absent-container": {"cgroup": {"pids.max": 5}}}})
    refused(ran, "no container 'absent-container'", "runc", "crun")


def test_pid_of_a_dead_process(scplan: Scplan) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    config = {"version": 1, "containers": {"web": {"runtime": "process", "pid": ended.pid, "cgroup": {"pids.max": 5}}}}
    refused(scplan("apply", "--auto-approve", config=config), "web is not running")


@pytest.mark.parametrize("content", [None, "", "abc", "0", "-5", "99999999999", "4194304\n"])
def test_pid_file_that_names_no_process(scplan: Scplan, content: str | None) -> None:
    path = scplan.directory / "app.pid"
    if content is not None:
        path.write_text(content)
    web = {"runtime": "process", "pid_file": str(path), "cgroup": {"pids.max": 5}}
    refused(scplan("apply", "--auto-approve", config={"version": 1, "containers": {"web": web}}), "web")


# the host itself

OF_THE_HOST: dict[str, Any] = {
    "nics": [{"name": "sct-never", "addresses": ["10.97.0.5/24"]}],
    "routes": [{"to": "10.97.0.0/24", "dev": "lo0"}],
    "mounts": ["/srv:/mnt"],
    "devices": ["/dev/null:/dev/scplan-never"],
    "cgroup": {"pids.max": 4000000},
}


@pytest.mark.parametrize("section", OF_THE_HOST)
@pytest.mark.parametrize("whose", ["init", "own"])
def test_process_in_the_hosts_namespaces_is_never_touched(scplan: Scplan, section: str, whose: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        pid = 1 if whose == "init" else sleeper.pid
        web = {"runtime": "process", "pid": pid, section: OF_THE_HOST[section]}
        try:
            with nothing_changed():
                ran = scplan("apply", "--auto-approve", config={"version": 1, "containers": {"web": web}})
                assert ran.code in (1, 3), ran.stderr
                refused(ran, "container web", code=ran.code)
            assert not Path("/dev/scplan-never").exists()
        finally:
            sleeper.kill()


def test_process_in_a_cgroup_that_others_share_gets_no_settings(
    make_container: MakeContainer, scplan: Scplan, loop_disk: LoopDisk
) -> None:
    container = make_container("process", with_cgroups=False)
    limited = {"source": loop_disk.path, "target": "/dev/data", "io": {"read_bps": "10m"}}
    for sections in ({"cgroup": {"pids.max": 100}}, {"devices": [limited]}):
        with nothing_changed(container):
            ran = scplan("apply", "--auto-approve", config=of(container, **sections))
            assert ran.code in (1, 3), ran.stderr
            refused(ran, "cgroup of its own", code=ran.code)


# files that are no files


@pytest.mark.parametrize("name", ["fifo", "directory", "absent", "/dev/zero", "loop", "unreadable/../absent"])
def test_what_is_no_file_is_refused_as_a_configuration(scplan: Scplan, name: str) -> None:
    os.mkfifo(scplan.directory / "fifo")
    (scplan.directory / "directory").mkdir()
    (scplan.directory / "loop").symlink_to("loop")
    refused(scplan("plan", "-f", name, timeout_s=10), name)


def test_no_configuration_at_all(scplan: Scplan) -> None:
    refused(scplan("plan"), "there is no scplan.yaml", "-f")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: "", "is not JSON"),
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda _: "\0\xff" * 100, "is not JSON"),
        (lambda _: "{}", "format version"),
        (lambda text: text.replace('"format_version": "1.0"', '"format_version": "2.0"'), "format version 2.0"),
        (lambda text: json.dumps(json.loads(text) | {"host": []}), "host is missing"),
        (lambda text: json.dumps(json.loads(text) | {"resources": {"x": {}}}), "not an address"),
        (lambda text: json.dumps(json.loads(text) | {"containers": {"web": 5}}), "host.snapshot"),
        (lambda text: text.replace('"page_size": 4096', '"page_size": "x"'), "host.snapshot"),
        (lambda text: text.replace('"pids.max"', "5"), "host.snapshot"),
    ],
    ids=["empty", "truncated", "garbage", "object", "newer", "host", "address", "container", "page size", "type"],
)
def test_damaged_snapshot_is_refused(process_container: Container, scplan: Scplan, damage: object, said: str) -> None:
    assert callable(damage)
    scplan("apply", "--auto-approve", config=of(process_container, cgroup={"pids.max": 100})).ok()
    scplan("snapshot", "--out", "host.snapshot").ok()
    path = scplan.directory / "host.snapshot"
    good = path.read_text()
    damaged = damage(good)
    assert damaged != good
    path.write_text(damaged, encoding="latin-1")
    refused(scplan("plan", "--live", "host.snapshot"), said)


def test_snapshot_without_the_container_says_so(make_container: MakeContainer, scplan: Scplan) -> None:
    one, other = make_container("process"), make_container("process")
    scplan("snapshot", "--out", "host.snapshot", config=of(one, cgroup={"pids.max": 100})).ok()
    ran = scplan("plan", "--live", "host.snapshot", config=of(other, cgroup={"pids.max": 100}))
    refused(ran, "snapshot", other.name)


@pytest.mark.parametrize("name", ["fifo", "absent", "directory"])
def test_what_is_no_file_is_refused_as_a_snapshot(scplan: Scplan, name: str) -> None:
    os.mkfifo(scplan.directory / "fifo")
    (scplan.directory / "directory").mkdir()
    ran = scplan("plan", "--live", name, config="version: 1\ncontainers: {}\n", timeout_s=10)
    refused(ran, name)


def test_unprivileged_user_is_told_what_is_missing(
    process_container: Container, scplan: Scplan, host_directory: Path
) -> None:
    asked = of(process_container, nics=[{"name": "eth1"}], mounts=[f"{host_directory}:/srv/data"])
    (host_directory / "scplan.yaml").write_text(json.dumps(asked))
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *scplan.command("plan")]
    environment = {**scplan.environment, "SCPLAN_STATE_DIR": str(host_directory / "absent")}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=host_directory, env=environment)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "EACCES" in ended.stderr
    assert "takes root" in ended.stderr


def many(**odd: dict[str, Any]) -> dict[str, Any]:
    """So many containers that several processes share out the reading; some have what `odd` says."""
    usual = {"runtime": "process", "pid": os.getpid(), "routes": [{"to": "10.0.0.0/8", "dev": "eth9"}]}
    names = [f"c{number}" for number in range(60)]
    return {"version": 1, "containers": {name: {**usual, **odd.get(name, {})} for name in names}}


def test_all_errors_of_many_containers_are_said_at_once(scplan: Scplan) -> None:
    wrong = {"c3": {"nics": [{"name": "eth1", "mtu": 1}]}, "c4": {"mounts": ["/srv:/"]}}
    config = many(**wrong, c50={"routes": [{"to": "nowhere"}]})
    ran = scplan("plan", config=config).ok(1)
    assert ran.stderr.count("scplan.yaml:") == 3
    assert ran.stderr.index("mtu") < ran.stderr.index("root") < ran.stderr.index("nowhere"), "in file order"


def test_what_two_of_many_containers_claim_is_an_error(scplan: Scplan) -> None:
    nic = {"nics": [{"name": "eth1", "host_name": "shared0"}]}
    ran = scplan("plan", config=many(c3=nic, c4=nic)).ok(1)
    assert "host link shared0 of c4/nic/eth1 is already that of c3/nic/eth1" in ran.stderr

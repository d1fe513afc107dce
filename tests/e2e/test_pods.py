"""Containers that share a network namespace, as those of a pod do: what one of them owns is not the other's."""

from __future__ import annotations

import json
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeContainer, Scplan
from tests.containers.container import Container
from tests.e2e.scene import Config, config, nothing_changed, planned, refused

pytestmark = pytest.mark.needs("root", "veth")

NIC: dict[str, Any] = {"nics": [{"name": "eth1", "addresses": ["10.92.0.2/24"]}]}
ROUTE: dict[str, Any] = {"routes": [{"to": "default", "via": "10.92.0.1"}]}


@pytest.fixture
def web(make_container: MakeContainer) -> Container:
    return make_container("process")


@pytest.fixture
def beside(web: Container) -> Iterator[Container]:
    """Another container in the network namespace of the first."""
    command = ["nsenter", "--target", str(web.pid), "--net", "unshare", "--mount", "sleep", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield Container(f"{web.name}-b", "process", process.pid)
    finally:
        process.kill()
        process.wait()


def gateways(web: Container) -> list[str]:
    return [one["gateway"] for one in web.ip("-4", "route", "show", "default")]


SAME_NIC = {"nics": [{"name": "eth1"}]}


@pytest.mark.parametrize(("wanted", "said"), [(ROUTE, "route default"), (SAME_NIC, "nic eth1")])
def test_what_another_one_owns_is_refused(
    scplan: Scplan, web: Container, beside: Container, wanted: dict[str, Any], said: str
) -> None:
    scplan("apply", "--auto-approve", config=config((web, NIC | ROUTE))).ok()
    with nothing_changed(web):
        refused(
            scplan("plan", config=config((beside, wanted))),
            f"{said} belongs to {web.name}/{said.replace(' ', '/')}",
            "scplan.yaml:",
            "network namespace",
        )
        refused(scplan("apply", "--auto-approve"), "belongs to")
    scplan("drift", "--detailed-exitcode", config=config((web, NIC | ROUTE))).ok()


def test_the_same_in_one_file_is_refused_for_the_second(scplan: Scplan, web: Container, beside: Container) -> None:
    both = config((web, NIC | ROUTE), (beside, ROUTE))
    with nothing_changed(web):
        refused(scplan("plan", config=both), f"route default belongs to {web.name}/route/default")
    scplan("apply", "--auto-approve", config=config((web, NIC | ROUTE))).ok()
    own = {"routes": [{"to": "10.93.0.0/16", "via": "10.92.0.1"}]}
    scplan("apply", "--auto-approve", config=config((web, NIC | ROUTE), (beside, own))).ok()
    assert planned(scplan("plan", "--json").ok()) == {}
    scplan("destroy", beside.name, "--auto-approve").ok()
    assert gateways(web) == ["10.92.0.1"]


def test_another_state_directory_is_asked_too(
    scplan: Scplan, web: Container, beside: Container, tmp_path: Path
) -> None:
    scplan("apply", "--auto-approve", config=config((web, NIC | ROUTE))).ok()
    other = {"SCPLAN_STATE_DIR": str(tmp_path / "other")}
    wanted = config((beside, ROUTE))
    said = f"belongs to {web.name}/route/default in the records of {scplan.state_dir}"
    refused(scplan("plan", config=wanted, environment=other), said)
    scplan("destroy", web.name, "--auto-approve").ok()
    assert gateways(web) == []


def test_who_owned_it_too_gives_up_its_record_alone(scplan: Scplan, web: Container, beside: Container) -> None:
    """Earlier versions let both own it: here by a copied record."""
    first: Config = config((web, NIC | ROUTE))
    scplan("apply", "--auto-approve", config=first).ok()
    scplan("apply", "--auto-approve", config=config((beside, {"routes": [{"to": "10.93.0.0/16", "dev": "eth1"}]}))).ok()
    records = scplan.state_dir / "containers" / "process"
    both(records, web.name, beside.name)
    plan = scplan("plan", "--json", "--destroy", config=config((beside, ROUTE))).ok()
    assert planned(plan)["route/default"] == "release"
    scplan("destroy", beside.name, "--auto-approve").ok()
    assert gateways(web) == ["10.92.0.1"]
    scplan("drift", "--detailed-exitcode", config=first).ok()
    assert not (records / f"{beside.name}.json").exists()


def both(records: Path, one: str, other: str) -> None:
    """Has the second container own the default route of the first as well."""

    def load(name: str) -> Any:
        return json.loads((records / f"{name}.json").read_text().split(" ", 1)[1])

    document = load(other)
    document["resources"]["route/default"] = load(one)["resources"]["route/default"]
    text = json.dumps(document, separators=(",", ":"))
    (records / f"{other}.json").write_text(f"{zlib.crc32(text.encode()):08x} {text}\n")

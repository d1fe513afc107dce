"""The JSON Schema of the configuration: it is one, and it agrees with what scplan reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from scplan.config import load
from scplan.config.schema import configuration_schema
from scplan.kinds import KINDS

ROOT = Path(__file__).parents[2] / "examples"
EXAMPLES = [*sorted(ROOT.glob("*.yaml")), *sorted(ROOT.glob("fleet.d/*.yaml"))]
SCHEMA = configuration_schema(KINDS)
VALIDATOR = Draft202012Validator(SCHEMA)


def web(**body: Any) -> dict[str, Any]:
    return {"version": 1, "containers": {"web": body}}


def test_it_is_a_json_schema() -> None:
    Draft202012Validator.check_schema(json.loads(json.dumps(SCHEMA)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_fit(path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_normal_forms_fit(path: Path) -> None:
    if path.parent.name != "fleet.d":
        document = load([str(path)], KINDS).to_json()
        assert [error.message for error in VALIDATOR.iter_errors(document)] == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"version": 2},
        {"version": 1, "container": {}},
        {"version": 1, "containers": {"a/b": {}}},
        {"version": 1, "containers": {"": {}}},
        {"version": 1, "profiles": {"p": {"runtime": "runc"}}},
        web(nic=[]),
        web(runtime="rnuc"),
        web(nics=[{"name": "eth0", "mtuu": 1}]),
        web(nics=[{"mtu": 1500}]),
        web(nics=["eth0"]),
        web(nics={"name": "eth0"}),
        web(nics=[{"name": "e", "former_mac": "02:00:00:00:00:01"}]),
        web(devices=[{"source": "/dev/a", "io": {"read_bsp": 1}}]),
        web(devices=[{"source": "dev/a"}]),
        web(mounts=[{"source": "/a", "target": "/b", "propagation": "rslav"}]),
        web(cgroup=["memory.max"]),
        web(modules=["a b"]),
    ],
)
def test_what_scplan_refuses_does_not_fit(document: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize(
    "document",
    [
        {"version": 1, "x-anything": [1, {"a": None}], "containers": None},
        {"version": 1, "containers": {"x-note": 5, "web": None}},
        web(devices=["/dev/sdb"], mounts=["/a:/b"], routes=[{"via": "10.0.0.1"}]),
        web(nics=[{"name": "e", "qlen": 5, "x-note": 1, "addresses": "10.0.0.1/8", "mtu": None}]),
        web(cgroup={"memory.max": "2GiB", "pids.max": 5}),
        web(cgroup={"memory.max": {"value": "2GiB", "required": False}}),
        web(profiles="p", modules="br_netfilter"),
    ],
)
def test_what_scplan_reads_fits(document: dict[str, Any]) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []


def test_every_attribute_is_described() -> None:
    for kind in KINDS.values():
        if kind.section_form == "list":
            entry = SCHEMA["$defs"][kind.name]
            long = entry.get("anyOf", [entry])[0]
            assert [name for name, schema in long["properties"].items() if not schema.get("description")] == []

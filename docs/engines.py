"""Which test tries which case with which engine; docs/generate.py makes a table of it and of what the tests came to.

`python -m docs.engines` runs these tests and writes their outcomes to docs/reference/engines.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

ENGINES = ("docker", "podman", "containerd", "isulad", "incus", "lxc", "nspawn", "runc", "crun")
RESULTS = Path(__file__).parent / "reference/engines.json"

_RUNTIMES = "tests/e2e/test_runtimes.py::"
_LIFECYCLE = "tests/e2e/test_lifecycle.py::"
_ENGINES = "tests/e2e/test_lifecycle_engines.py::"
_RECORDED = "tests/unit/test_recorded_engines.py::"
_BY_NAME = "tests/e2e/test_made_again_by_name.py::"
_ISULAD = "tests/e2e/test_isulad.py::"
_ROOTLESS = "tests/e2e/test_rootless.py::"
_STOPPED = "tests/e2e/test_stopped.py::"
_IDENTITY = "tests/e2e/test_identity.py::"
_IMPORT = "tests/e2e/test_import.py::"


def _each(test: str, *engines: str) -> dict[str, str]:
    """One parametrized test for several engines."""
    return {engine: f"{test}[{engine}]" for engine in engines}


_OF_ENGINES = ("docker", "podman", "containerd", "isulad", "incus", "lxc", "nspawn")
_WITH_HOOK = ("docker", "podman", "containerd", "isulad", "incus", "lxc")
_STATUSES = {
    "docker": f"{_RECORDED}test_docker_answers_of_containers_in_each_status",
    "incus": f"{_RECORDED}test_incus_answers_of_containers_in_each_status",
}

CASES: Mapping[str, Mapping[str, str]] = {
    "found by name": {
        **_each(f"{_RUNTIMES}test_container_has_what_was_planned_until_it_is_destroyed", *_OF_ENGINES),
        **_each(f"{_IDENTITY}test_name_is_no_short_form_of_a_longer_one", "runc", "crun"),
    },
    "found by ID": {
        "isulad": f"{_RECORDED}test_isulad_has_them_by_name_and_id_in_their_status[2.1.6-web]",
        "podman": f"{_RECORDED}test_podman_storage_and_states_of_its_runtimes",
        "docker": _STATUSES["docker"],
        "containerd": f"{_RECORDED}test_containerd_tasks_and_states",
    },
    "a beginning of another name is not it": _each(
        f"{_IDENTITY}test_records_of_a_container_that_is_gone_are_not_about_another", "runc", "crun"
    ),
    "renamed": _each(f"{_BY_NAME}test_renamed_container_that_runs_keeps_its_nic", "docker", "podman"),
    "created, paused, stopped": {
        **_STATUSES,
        "isulad": f"{_ISULAD}test_container_is_planned_for_as_it_is_in_each_status[runc]",
        "lxc": f"{_RECORDED}test_lxc_configurations_and_answers_of_monitors",
        "podman": f"{_RECORDED}test_podman_storage_and_states_of_its_runtimes",
        "containerd": f"{_RECORDED}test_containerd_tasks_and_states",
        "runc": f"{_STOPPED}test_what_is_recorded_is_there_at_the_next_start",
    },
    "restarting": {"isulad": f"{_RECORDED}test_container_of_isulad_that_restarts_has_no_process"},
    "gone": _each(f"{_RUNTIMES}test_restarted_container_gets_it_again_and_a_removed_one_is_gone", *_OF_ENGINES),
    "made again": {
        **_each(f"{_BY_NAME}test_records_follow_the_name_where_the_file_says_so", "docker", "podman"),
        "isulad": f"{_ISULAD}test_container_made_again_is_said_to_be_another_one_when_it_starts",
    },
    "hook, restart": {
        **_each(f"{_ENGINES}test_restarted_container_has_it_all_and_the_host_its_nic_between", *_WITH_HOOK),
        **_each(
            f"{_LIFECYCLE}test_restarted_container_has_what_it_had_and_the_host_gets_its_nic_between", "runc", "crun"
        ),
    },
    "kill -9": {"runc": f"{_LIFECYCLE}test_container_whose_init_was_killed_starts_with_it_again"},
    "restarts beside applies": _each(
        "tests/e2e/test_restart_stress.py::test_applies_beside_restarts_never_fail_and_never_delay_them",
        "docker",
        "podman",
    ),
    "the engine restarts": {
        "docker": "tests/e2e/test_watch_engines.py::test_a_daemon_that_goes_and_comes_back_is_heard_again"
    },
    "the engine can't be reached": {},
    "two namespaces, roots or paths": {
        "containerd": f"{_RUNTIMES}test_namespace_of_containerd_is_chosen_by_the_environment",
        "lxc": f"{_RUNTIMES}test_container_of_lxc_below_another_path_is_found_while_it_runs[short]",
    },
    "user namespace": {
        "runc": f"{_LIFECYCLE}test_restarted_container_has_what_it_had_and_the_host_gets_its_nic_between[runc-userns]",
        "incus": f"{_RUNTIMES}test_container_has_what_was_planned_until_it_is_destroyed[incus]",
        "isulad": f"{_ISULAD}test_restarted_container_has_it_all_by_the_hook[mapped]",
    },
    "rootless": {"podman": f"{_ROOTLESS}test_root_finds_the_container_of_a_user"},
    "pod": {},
    "nothing to import from an untouched one": {
        **_each(f"{_IMPORT}test_container_as_its_runtime_made_it_has_nothing_to_import", "runc", "crun"),
        **_each(f"{_RUNTIMES}test_container_is_imported_as_it_is", *_OF_ENGINES),
    },
}
_NO_TEST = "no test of the suite tries it"
_NO_DAEMON = dict.fromkeys(("podman", "lxc", "nspawn", "runc", "crun"), "it has no daemon to ask")
EMPTY: Mapping[str, Mapping[str, str]] = {
    "found by ID": {
        **dict.fromkeys(("incus", "lxc", "nspawn"), "it has no ID beside the name"),
        **dict.fromkeys(("runc", "crun"), "the ID is the name"),
    },
    "renamed": {
        **dict.fromkeys(("containerd", "runc", "crun"), "it can't rename a container"),
    },
    "restarting": dict.fromkeys(("incus", "lxc", "nspawn", "runc", "crun", "containerd"), "it has no such status"),
    "made again": dict.fromkeys(
        ("containerd", "incus", "lxc", "nspawn", "runc", "crun"), "the same one: the name is the ID"
    ),
    "hook, restart": {"nspawn": "it calls no hooks"},
    "the engine restarts": _NO_DAEMON,
    "the engine can't be reached": _NO_DAEMON,
    "pod": dict.fromkeys(("docker", "incus", "lxc", "nspawn", "runc", "crun"), "it has no pods"),
}


_WITHOUT_ENGINE = ("tests/unit/", _ROOTLESS, _ISULAD)
"""Tests that read files and answers as an engine writes them, where the engine itself does not run."""


def cell(case: str, engine: str, results: Mapping[str, str]) -> str:
    """The outcome of a case's test with an engine, and on what it was tried; where there is none, why."""
    test = CASES[case].get(engine)
    if test is not None:
        return results.get(test, "not run") + (" (files)" if test.startswith(_WITHOUT_ENGINE) else "")
    return EMPTY.get(case, {}).get(engine, _NO_TEST)


def tests() -> list[str]:
    """All tests of the table."""
    return sorted({test for row in CASES.values() for test in row.values()})


def results() -> dict[str, str]:
    """The outcomes of the last run, by test."""
    found: dict[str, str] = json.loads(RESULTS.read_text())
    return found


def outcomes(report: str) -> Iterator[tuple[str, str]]:
    """(test, outcome) of a report in the format of JUnit."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        yield f"{file}::{case.get('name')}", outcome


def main(report: str) -> None:
    """Runs the tests and writes what they came to; those of a report of another run, where one is given."""
    if not Path(report).exists():
        subprocess.run([sys.executable, "-m", "pytest", f"--junitxml={report}", *tests()], check=False)
    wanted = set(tests())
    found = {test: outcome for test, outcome in outcomes(report) if test in wanted}
    RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

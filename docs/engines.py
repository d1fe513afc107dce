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
_IDENTITY = "tests/e2e/test_identity.py::"
_IMPORT = "tests/e2e/test_import.py::"
_STRESS = "tests/e2e/test_restart_stress.py::"
_DOWN = "tests/e2e/test_engine_unreachable.py::test_containers_of_an_engine_that_is_down_are_known_by_their_processes"
_KEPT = "tests/e2e/test_kept_namespaces.py::"
_USERNS = "tests/e2e/test_user_namespaces.py::"


def _each(test: str, *engines: str) -> dict[str, str]:
    """One parametrized test for several engines."""
    return {engine: f"{test}[{engine}]" for engine in engines}


_OF_ENGINES = ("docker", "podman", "containerd", "isulad", "incus", "lxc", "nspawn")
_WITH_HOOK = ("docker", "podman", "containerd", "isulad", "incus", "lxc")
_WITH_IDS = ("docker", "podman", "isulad")
_OCI = ("runc", "crun")

CASES: Mapping[str, Mapping[str, str]] = {
    "found by name": {
        **_each(f"{_RUNTIMES}test_container_has_what_was_planned_until_it_is_destroyed", *_OF_ENGINES),
        **_each(f"{_IDENTITY}test_name_is_no_short_form_of_a_longer_one", *_OCI),
    },
    "found by ID": _each(f"{_RUNTIMES}test_container_has_what_was_planned_until_it_is_destroyed", *_WITH_IDS),
    "a beginning of another name is not it": {
        **_each(f"{_RUNTIMES}test_beginning_of_a_name_is_not_another_container", *_OF_ENGINES),
        **_each(f"{_IDENTITY}test_records_of_a_container_that_is_gone_are_not_about_another", *_OCI),
    },
    "renamed": {
        **_each(f"{_BY_NAME}test_renamed_container_that_runs_keeps_its_nic", "docker", "podman"),
        **_each(f"{_RUNTIMES}test_renamed_container_is_found_again_by_its_id", "isulad"),
        **_each(
            f"{_RUNTIMES}test_records_are_carried_over_to_a_new_name_of_the_same_container", "incus", "lxc", "nspawn"
        ),
    },
    "created, paused, stopped": {
        **_each(f"{_ENGINES}test_container_is_planned_for_as_it_is_in_each_status", *_WITH_HOOK),
        **_each(f"{_LIFECYCLE}test_container_is_planned_for_as_it_is_in_each_status", *_OCI),
        "nspawn": f"{_RUNTIMES}test_machine_is_planned_for_before_its_first_start_and_after_its_end",
    },
    "restarting": {
        **_each(
            f"{_ENGINES}test_container_that_its_engine_restarts_again_and_again_is_planned_for_as_stopped", "docker"
        ),
        "isulad": f"{_RECORDED}test_container_of_isulad_that_restarts_has_no_process",
    },
    "gone": {
        **_each(f"{_RUNTIMES}test_restarted_container_gets_it_again_and_a_removed_one_is_gone", *_OF_ENGINES),
        **_each(f"{_IDENTITY}test_records_of_a_container_that_is_gone_are_not_about_another", *_OCI),
    },
    "made again": {
        **_each(f"{_BY_NAME}test_records_follow_the_name_where_the_file_says_so", "docker", "podman"),
        "isulad": f"{_ISULAD}test_container_made_again_is_said_to_be_another_one_when_it_starts",
    },
    "hook, restart": {
        **_each(f"{_ENGINES}test_restarted_container_has_it_all_and_the_host_its_nic_between", *_WITH_HOOK),
        **_each(f"{_LIFECYCLE}test_restarted_container_has_what_it_had_and_the_host_gets_its_nic_between", *_OCI),
    },
    "kill -9": {
        **_each(f"{_ENGINES}test_container_whose_init_was_killed_starts_with_it_all", *_WITH_HOOK),
        **_each(f"{_LIFECYCLE}test_container_whose_init_was_killed_starts_with_it_again", *_OCI),
        **_each(f"{_RUNTIMES}test_restarted_container_gets_it_again_and_a_removed_one_is_gone", "nspawn"),
    },
    "restarts beside applies": {
        **_each(f"{_STRESS}test_applies_beside_restarts_never_fail_and_never_delay_them", *_WITH_HOOK),
        **_each(f"{_STRESS}test_applies_beside_restarts_by_an_oci_runtime", *_OCI),
    },
    "the engine restarts": _each(
        f"{_ENGINES}test_engine_that_restarts_leaves_its_containers_as_they_are", "docker", "containerd", "incus"
    ),
    "the engine can't be reached": {
        "docker": f"{_DOWN}[docker-True]",
        "incus": f"{_DOWN}[incus-True]",
        **_each(f"{_ENGINES}test_containers_of_containerd_are_known_by_its_files_while_it_is_down", "containerd"),
    },
    "two namespaces, roots or paths": {
        "docker": f"{_RUNTIMES}test_container_of_another_daemon_or_storage_is_another_one[OtherDocker]",
        "podman": f"{_RUNTIMES}test_container_of_another_daemon_or_storage_is_another_one[OtherPodman]",
        "containerd": f"{_RUNTIMES}test_namespace_of_containerd_is_chosen_by_the_environment",
        "isulad": f"{_ISULAD}test_graph_that_the_daemon_was_started_with_is_looked_in",
        "incus": f"{_RUNTIMES}test_project_of_incus_is_part_of_who_a_container_is",
        "lxc": f"{_RUNTIMES}test_container_of_lxc_below_another_path_is_found_while_it_runs[short]",
        "nspawn": f"{_RUNTIMES}test_ephemeral_machines_of_one_directory_are_known_by_their_own_names",
        **_each(f"{_RUNTIMES}test_root_of_an_oci_runtime_is_chosen_by_the_environment", *_OCI),
    },
    "user namespace": {
        **_each(
            f"{_USERNS}test_container_has_what_was_planned_until_it_is_destroyed",
            *("docker", "podman", "containerd", "lxc", "nspawn"),
        ),
        "isulad": f"{_ISULAD}test_restarted_container_has_it_all_by_the_hook[mapped]",
        "incus": f"{_RUNTIMES}test_container_has_what_was_planned_until_it_is_destroyed[incus]",
        **{
            one: f"{_LIFECYCLE}test_restarted_container_has_what_it_had_and_the_host_gets_its_nic_between[{one}-userns]"
            for one in _OCI
        },
    },
    "rootless": {
        "podman": f"{_ROOTLESS}test_root_finds_the_container_of_a_user",
        **_each(f"{_ROOTLESS}test_container_that_the_user_runs_is_found_and_changed", *_OCI),
    },
    "pod": {
        "podman": f"{_KEPT}test_nic_stays_in_a_pod_when_its_container_restarts",
        **_each(f"{_KEPT}test_nic_stays_in_a_shared_namespace_when_its_container_restarts", "containerd", "isulad"),
    },
    "nothing to import from an untouched one": {
        **_each(f"{_IMPORT}test_container_as_its_runtime_made_it_has_nothing_to_import", *_OCI),
        **_each(f"{_RUNTIMES}test_untouched_container_has_nothing_to_import", *_OF_ENGINES),
    },
}
_NO_TEST = "no test of the suite tries it"
_NO_DAEMON = {
    **dict.fromkeys(("podman", "lxc", "nspawn", "runc", "crun"), "it has no daemon to ask"),
    "isulad": "its files are read, and its daemon is not asked",
}
EMPTY: Mapping[str, Mapping[str, str]] = {
    "found by ID": {
        **dict.fromkeys(("incus", "lxc", "nspawn"), "it has no ID beside the name"),
        **dict.fromkeys(("containerd", "runc", "crun"), "the ID is the name"),
    },
    "renamed": {
        **dict.fromkeys(("containerd", "runc", "crun"), "it can't rename a container"),
    },
    "restarting": dict.fromkeys(
        ("podman", "incus", "lxc", "nspawn", "runc", "crun", "containerd"), "it has no such status"
    ),
    "made again": dict.fromkeys(
        ("containerd", "incus", "lxc", "nspawn", "runc", "crun"), "the same one: the name is the ID"
    ),
    "hook, restart": {"nspawn": "it calls no hooks"},
    "restarts beside applies": {"nspawn": "it calls no hooks, and so no start waits for an apply"},
    "the engine restarts": _NO_DAEMON,
    "the engine can't be reached": _NO_DAEMON,
    "rootless": {
        **dict.fromkeys(("isulad", "incus"), "its daemon runs as root alone"),
        "nspawn": "root alone runs it",
    },
    "pod": dict.fromkeys(("docker", "incus", "lxc", "nspawn", "runc", "crun"), "it has no pods"),
}


_WITHOUT_ENGINE = (
    "tests/unit/",
    f"{_ROOTLESS}test_root_finds_the_container_of_a_user",
    _ISULAD,
)
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

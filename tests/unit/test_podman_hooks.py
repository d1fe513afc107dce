"""The files that podman takes hooks from, and the state directory that a configured hook is called with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scplan.hooks.spec import lxc_lines, oci_hook, podman_hook
from scplan.model.live import ContainerFacts, Status
from scplan.runtimes import podman
from scplan.runtimes.configured_hooks import DEFAULT_STATE_DIR, state_dir_of, state_dirs_in_lxc_configuration
from scplan.runtimes.podman import Podman, hook_directories


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(podman, "_CONFIGURATIONS", (str(tmp_path / "usr.conf"), str(tmp_path / "etc.conf")))
    for name in ("CONTAINERS_CONF", "CONTAINERS_CONF_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _write(path: Path, directory: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'[engine]\nhooks_dir = ["{directory}"]\n')


def test_last_file_that_names_directories_counts(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hook_directories() == ["/usr/share/containers/oci/hooks.d"]
    for number, name in enumerate(("usr.conf", "etc.conf", "etc.conf.d/10-a.conf", "etc.conf.d/20-b.conf")):
        _write(etc / name, f"/hooks{number}")
        assert hook_directories() == [f"/hooks{number}"]
    (etc / "etc.conf.d/30-c.conf").write_text("[engine]\n")
    assert hook_directories() == ["/hooks3"]
    _write(etc / "chosen.conf", "/chosen")
    monkeypatch.setenv("CONTAINERS_CONF", str(etc / "chosen.conf"))
    assert hook_directories() == ["/chosen"]
    (etc / "chosen.conf").write_text("[engine]\n")
    assert hook_directories() == ["/usr/share/containers/oci/hooks.d"], "it stands for all the others"
    _write(etc / "override.conf", "/override")
    monkeypatch.setenv("CONTAINERS_CONF_OVERRIDE", str(etc / "override.conf"))
    assert hook_directories() == ["/override"]


def test_hook_in_a_directory_of_podmans_names_its_state_directory(etc: Path) -> None:
    web = ContainerFacts("web", "podman", "1" * 64, Status.RUNNING, place=str(etc))
    _write(etc / "etc.conf", str(etc / "hooks"))
    assert Podman().hook_state_dirs(web) == []
    (etc / "hooks").mkdir()
    (etc / "hooks/scplan.json").write_text(podman_hook("/srv/state"))
    assert Podman().hook_state_dirs(web) == ["/srv/state"]


def test_state_directory_of_a_hook() -> None:
    assert state_dir_of(oci_hook("/srv/state", "createRuntime", "runc")) == "/srv/state"
    plain = {"path": "/usr/bin/scplan", "args": ["scplan", "hook", "createRuntime"]}
    assert state_dir_of(plain) == DEFAULT_STATE_DIR
    assert state_dir_of({**plain, "env": ["A=b", "SCPLAN_STATE_DIR=/srv/env"]}) == "/srv/env"
    assert state_dir_of({**plain, "args": ["scplan", "--state-dir=/srv/one", "hook"]}) == "/srv/one"
    assert json.loads(podman_hook("/x"))["hook"]["args"]


def test_state_directory_of_a_hook_of_lxc() -> None:
    text = "\n".join(lxc_lines("/srv/my state", "lxc"))
    assert state_dirs_in_lxc_configuration(text) == ["/srv/my state"]
    assert state_dirs_in_lxc_configuration("lxc.hook.start-host = /usr/bin/scplan hook start-host") == [
        DEFAULT_STATE_DIR
    ]
    assert state_dirs_in_lxc_configuration("lxc.hook.start-host = /bin/true") == []

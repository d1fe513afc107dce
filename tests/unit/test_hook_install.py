"""The hook is put in place and taken out, and what others wrote is as it was, to the last character."""

from __future__ import annotations

import json
import os
import stat
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scplan.errors import ScplanError
from scplan.hooks.bundle import add_hooks, with_hooks
from scplan.hooks.install import carry_out, install, uninstall
from scplan.hooks.json_text import with_member, without_member
from scplan.hooks.spec import oci_hooks, spec
from scplan.hooks.wrapper import _command_at
from scplan.runtimes.configured_hooks import is_in_bundle, is_in_lxc_configuration
from scplan.runtimes.state_files import toml_list, toml_value

STATE_DIR = "/srv/scplan records"
LXC = "lxc.uts.name = web\n# mine\nlxc.hook.start-host = /usr/bin/other hook\nlxc.hook.post-stop = 'unclosed\n"
DOCKER = """\
{
    "debug": true,
    "dns": ["10.0.0.1",   "10.0.0.2"],
    "runtimes": {"kata": {"path": "/usr/bin/kata"}}
}
"""
OTHERS: dict[str, list[str | None]] = {
    "podman": [None],
    "docker": [None, DOCKER, '{"debug":false}', '{\n\t"runtimes": {\n\t\t"a": {"path": "/a"}\n\t}\n}', "\n"],
    "lxc": [LXC, "", "lxc.uts.name = web"],
}


@pytest.mark.parametrize(
    ("runtime", "before"), [(runtime, before) for runtime, texts in OTHERS.items() for before in texts]
)
def test_installed_twice_and_taken_out_the_file_is_as_it_was(runtime: str, before: str | None, tmp_path: Path) -> None:
    path = tmp_path / "configuration"
    if before is not None:
        path.write_text(before)
        path.chmod(0o640)
    carry_out(install(runtime, STATE_DIR, path=str(path)))
    text = path.read_text()
    assert STATE_DIR in text
    assert not install(runtime, STATE_DIR, path=str(path)).changes
    if before is not None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    moved = install(runtime, "/elsewhere", path=str(path))
    assert moved.after is not None
    assert STATE_DIR not in moved.after, "an older version of the hook is replaced"
    carry_out(uninstall(runtime, path=str(path)))
    after = path.read_text() if path.exists() else None
    assert (after or "").strip() == (before or "").strip()
    if before and before.endswith("\n") and before.strip():
        assert after == before
    assert not uninstall(runtime, path=str(path)).changes


@pytest.mark.parametrize(
    ("runtime", "text", "said"),
    [
        ("podman", '{"version": "1.0.0", "hook": {"path": "/usr/bin/other"}}', "not a hook of scplan"),
        ("docker", "{", "not a JSON object"),
        ("docker", '{"runtimes": []}', "runtimes are not an object"),
        ("docker", '{"runtimes": {"scplan": {"path": "/usr/bin/other"}}}', "another runtime 'scplan'"),
        ("docker", b"\xff\xfe", "not text"),
    ],
)
def test_what_others_have_there_is_refused_and_stays(
    runtime: str, text: str | bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "configuration"
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(content)
    with pytest.raises(ScplanError, match=said):
        install(runtime, STATE_DIR, path=str(path))
    assert path.read_bytes() == content


def test_uninstall_leaves_another_ones_runtime_and_podman_hook(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for runtime, text in (
        ("docker", '{"runtimes": {"scplan": {"path": "/a"}}}'),
        ("podman", '{"hook": {"path": "/a"}}'),
    ):
        path.write_text(text)
        assert not uninstall(runtime, path=str(path)).changes


def test_default_runtime_is_not_taken_away_from_under_docker(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{"default-runtime": "scplan"}')
    carry_out(install("docker", STATE_DIR, path=str(path)))
    with pytest.raises(ScplanError, match="default runtime"):
        uninstall("docker", path=str(path))


@pytest.mark.parametrize("runtime", ["runc", "crun", "containerd", "incus", "isulad", "nspawn", "nonsense"])
def test_what_install_can_not_do_is_said_with_the_way_out(runtime: str) -> None:
    with pytest.raises(ScplanError, match="can't put a hook in place") as caught:
        install(runtime, STATE_DIR)
    assert "hook spec" in caught.value.diagnostics[0].hint


def test_container_that_lxc_does_not_have_is_refused() -> None:
    with pytest.raises(ScplanError, match="no container 'absent'"):
        install("lxc", STATE_DIR, container="absent")


def test_symlink_stays_and_its_file_is_changed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "daemon.json"
    real.write_text("{}\n")
    link.symlink_to(real)
    carry_out(install("docker", STATE_DIR, path=str(link)))
    assert link.is_symlink()
    assert "scplan-runc" in real.read_text()


def test_directories_that_podman_is_told_to_look_in_are_read(tmp_path: Path) -> None:
    path = tmp_path / "containers.conf"
    path.write_text('[engine]\nhooks_dir = ["/usr/share/hooks", 7, "/etc/hooks"]\n')
    assert toml_list(str(path), "engine", "hooks_dir") == ["/usr/share/hooks", "/etc/hooks"]
    assert toml_list(str(path), "engine", "absent") == []
    assert toml_value(str(path), "engine", "hooks_dir") is None, "it is no text"


# JSON text


NAMES = st.text(string.ascii_letters + '"\\é', min_size=1, max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(document=st.dictionaries(NAMES, VALUES, max_size=4), indent=st.sampled_from([None, 1, 4, "\t"]), value=VALUES)
def test_member_is_added_and_taken_out_of_any_json(
    document: dict[str, Any], indent: int | str | None, value: Any
) -> None:
    document.pop("new", None)
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    added = with_member(text, ("new", "member"), value)
    assert json.loads(added) == {**document, "new": {"member": value}}
    assert json.loads(with_member(added, ("new", "member"), 1)) == {**document, "new": {"member": 1}}
    taken = without_member(added, ("new",))
    assert json.loads(taken) == document
    if document:
        assert taken == text


# bundles and the wrapper


def test_hooks_of_others_stay_in_a_bundle_and_scplans_come_last(tmp_path: Path) -> None:
    other = {"path": "/usr/bin/other", "args": ["other"]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"root": {"path": "rootfs"}, "hooks": {"createRuntime": [other], "poststart": [other]}}))
    path.chmod(0o600)
    assert add_hooks(str(tmp_path), STATE_DIR, "docker") is None
    first = path.read_bytes()
    hooks = json.loads(first)["hooks"]
    assert hooks["createRuntime"] == [other, *oci_hooks(STATE_DIR, "docker")["createRuntime"]]
    assert hooks["poststart"] == [other]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    inode = path.stat().st_ino
    assert add_hooks(str(tmp_path), STATE_DIR, "docker") is None
    assert (path.read_bytes(), path.stat().st_ino) == (first, inode), "the second time nothing is written"
    assert is_in_bundle(str(tmp_path))


@pytest.mark.parametrize("config", [[], {"hooks": []}, {"hooks": {"createRuntime": {}}}, {"hooks": {"prestart": [1]}}])
def test_configuration_that_is_none_is_refused(config: Any) -> None:
    with pytest.raises(TypeError):
        with_hooks(config, oci_hooks(STATE_DIR, None))


@pytest.mark.parametrize("text", [None, "", "{", "[]", "\x00", '{"hooks": 1}', "[" * 100000])
def test_bundle_that_can_not_be_changed_is_told_and_left(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    problem = add_hooks(str(tmp_path), STATE_DIR, None)
    assert problem
    assert str(path) in problem
    assert (path.read_text() if path.exists() else None) == text
    assert os.listdir(tmp_path) == ([] if text is None else ["config.json"])


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("--root /run/x --log /l --log-format json create --bundle /b web", "create"),
        ("--root create --systemd-cgroup start web", "start"),
        ("--log=create state web", "state"),
        ("--unknown value create web", "create"),
        ("--version", None),
    ],
)
def test_command_of_a_runtime_is_found_behind_its_options(arguments: str, command: str | None) -> None:
    words = arguments.split()
    at = _command_at(words)
    assert (None if at is None else words[at]) == command


# what is handed out


@pytest.mark.parametrize("runtime", ["lxc", "incus"])
def test_lines_for_lxc_are_seen_as_the_hook(runtime: str) -> None:
    assert is_in_lxc_configuration(spec(runtime, STATE_DIR).text)


def test_runtime_without_hooks_is_refused_with_the_way_out() -> None:
    with pytest.raises(ScplanError, match="nspawn calls no hooks") as caught:
        spec("nspawn", STATE_DIR)
    assert "timer" in caught.value.diagnostics[0].hint

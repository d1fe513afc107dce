"""Files to desired resources: forms of entries, profiles, several files, claims, and all that can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from scplan.config import Configuration, configuration_from_json, default_paths, load
from scplan.errors import ConfigurationError, Severity, SourceRange
from scplan.kinds import KINDS
from scplan.model.address import Address

ROOT = Path(__file__).parents[2]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "examples/fleet.d"]


def read(directory: Path, *texts: str) -> Configuration:
    """The configuration of files a.yaml, b.yaml … that hold these texts."""
    paths = []
    for letter, text in zip("abcdef", texts, strict=False):
        path = directory / f"{letter}.yaml"
        path.write_text(text)
        paths.append(str(path))
    return load(paths, KINDS)


def errors(directory: Path, *texts: str) -> list[str]:
    """The diagnostics of wrong files, without their directory."""
    with pytest.raises(ConfigurationError) as caught:
        read(directory, *texts)
    return [str(diagnostic).replace(f"{directory}/", "") for diagnostic in caught.value.diagnostics]


def web(body: str, head: str = "version: 1\n") -> str:
    """A file whose container `web` has this body, from line 4 on."""
    indented = "".join(f"    {line}\n" for line in body.strip("\n").split("\n"))
    return f"{head}containers:\n  web:\n{indented}"


def resource(configuration: Configuration, address: str) -> Any:
    found = Address.parse(address)
    return configuration.containers[found.container].resources[found]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid_and_without_warnings(path: Path) -> None:
    configuration = load([str(path)], KINDS)
    assert configuration.containers
    assert configuration.diagnostics == ()


def test_the_full_example_has_every_kind_and_every_attribute() -> None:
    configuration = load([str(ROOT / "examples/full.yaml")], KINDS)
    resources = configuration.containers["web"].resources
    assert {address.kind for address in resources} == set(KINDS)
    document = configuration.to_json()["containers"]["web"]
    for kind in KINDS.values():
        if kind.section_form == "list":
            written = {key for entry in document[kind.section] for key in entry}
            wanted = {a.name for a in kind.record.attributes() if a.role in ("identity", "managed", "fixed", "policy")}
            assert wanted - written - {"onlink"} == (set() if kind.name != "route" else {"required"} - written)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_json_form_reads_back_equal(path: Path) -> None:
    configuration = load([str(path)], KINDS)
    document = json.loads(json.dumps(configuration.to_json()))
    again = configuration_from_json(document, KINDS)
    assert again.containers == configuration.containers
    assert again.to_json() == document


def test_short_and_long_forms_are_the_same(tmp_path: Path) -> None:
    short = read(tmp_path, web("devices: ['/dev/sdb:/dev/data:rw']\nmounts: ['/srv:/data:ro']"))
    long = read(
        tmp_path,
        web(
            "devices: [{source: /dev/sdb, target: /dev/data, permissions: rw}]\n"
            "mounts: [{source: /srv, target: /data, read_only: true}]"
        ),
    )
    assert short.containers["web"].resources == long.containers["web"].resources


def test_values_are_normalised(tmp_path: Path) -> None:
    body = "devices:\n- {source: /dev//sdb, io: {read_bps: 10m}}\nnics:\n- {name: e, mac: 02-AA-00-00-00-01}"
    configuration = read(tmp_path, web(body))
    assert resource(configuration, "web/device/dev/sdb").io.read_bps == 10 * 1024**2
    assert resource(configuration, "web/nic/e").mac == "02:aa:00:00:00:01"


def test_a_mac_of_decimal_digits_is_no_number(tmp_path: Path) -> None:
    nic = resource(read(tmp_path, web("nics: [{name: e, mac: 10:20:30:40:50:55}]")), "web/nic/e")
    assert nic.mac == "10:20:30:40:50:55"


def test_an_unquoted_mode_is_octal(tmp_path: Path) -> None:
    assert resource(read(tmp_path, web("devices: [{source: /dev/a, mode: 0660}]")), "web/device/dev/a").mode == "0660"


def test_null_is_unset(tmp_path: Path) -> None:
    device = "{source: /dev/a, mode: null, io: ~, permissions: }"
    body = f"devices: [{device}]\nnics:\nroutes: ~\nmounts: null\ncgroup: {{memory.max: }}"
    configuration = read(tmp_path, web(body))
    found = resource(configuration, "web/device/dev/a")
    assert (found.mode, found.io, found.permissions) == (None, None, "rwm")
    assert len(configuration.containers["web"].resources) == 1


def test_an_alias_of_an_attribute_is_read(tmp_path: Path) -> None:
    assert resource(read(tmp_path, web("nics: [{name: e, qlen: 500}]")), "web/nic/e").txqueuelen == 500


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    configuration = read(tmp_path, web("nics: [{name: e, addresses: 10.0.0.1/8}]"))
    assert resource(configuration, "web/nic/e").addresses == ("10.0.0.1/8",)


def test_cgroup_setting_can_be_a_mapping_of_its_own(tmp_path: Path) -> None:
    written = web("cgroup: {memory.max: {value: 2GiB, required: false}, pids.max: 512}")
    configuration = read(tmp_path, written)
    setting = resource(configuration, "web/cgroup/memory.max")
    assert (setting.value, setting.required) == (str(2 * 1024**3), False)
    assert resource(configuration, "web/cgroup/pids.max").required is True
    document = configuration.to_json()["containers"]["web"]["cgroup"]
    assert document == {"memory.max": {"value": str(2 * 1024**3), "required": False}, "pids.max": "512"}


def test_cgroup_settings_are_a_mapping(tmp_path: Path) -> None:
    configuration = read(tmp_path, web("cgroup: {memory.max: 2GiB, pids.max: 512, x-note: any}"))
    assert resource(configuration, "web/cgroup/memory.max").value == str(2 * 1024**3)
    assert resource(configuration, "web/cgroup/pids.max").value == "512"


def test_extension_keys_are_ignored_at_every_level(tmp_path: Path) -> None:
    text = "version: 1\nx-a: &a [1]\ncontainers:\n  x-b: *a\n  web:\n    x-c: 1\n    nics: [{name: e, x-d: {}}]\n"
    assert len(read(tmp_path, text).containers["web"].resources) == 1


def test_resources_know_where_they_were_written(tmp_path: Path) -> None:
    configuration = read(tmp_path, web("nics:\n- name: e\ncgroup:\n  pids.max: 5"))
    file = str(tmp_path / "a.yaml")
    assert configuration.source_of(Address("web", "nic", "e")) == SourceRange(file, 5, 7)
    assert configuration.source_of(Address("web", "cgroup", "pids.max")) == SourceRange(file, 7, 7)
    assert configuration.source_of(Address("db", "nic", "e")) is None
    assert configuration.containers["web"].source == SourceRange(file, 3, 3)


def test_containers_keep_the_order_of_the_file(tmp_path: Path) -> None:
    assert list(read(tmp_path, "version: 1\ncontainers: {z: , a: , m: }").containers) == ["z", "a", "m"]


# runtimes


def test_the_default_runtime_serves_containers_without_one(tmp_path: Path) -> None:
    text = "version: 1\nruntime: runc\ncontainers: {a: , b: {runtime: crun}}"
    assert [c.runtime for c in read(tmp_path, text).containers.values()] == ["runc", "crun"]
    assert read(tmp_path, "version: 1\ncontainers: {a: }").containers["a"].runtime == "auto"


def test_a_process_has_a_pid_or_a_pid_file(tmp_path: Path) -> None:
    head = "version: 1\nruntime: process\n"
    assert read(tmp_path, web("pid: 4242", head)).containers["web"].pid == 4242
    assert read(tmp_path, web("pid_file: /run/a.pid", head)).containers["web"].pid_file == "/run/a.pid"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("runtime: process", "a.yaml:3:3: missing pid"),
        ("runtime: process\npid: 1\npid_file: /run/a", "a.yaml:6:15: contradiction"),
        ("pid: 4242", "add runtime: process"),
        ("runtime: runc\npid_file: /run/a", "add runtime: process"),
        ("runtime: process\npid: 0", "invalid value"),
        ("runtime: process\npid: 4194305", "invalid value"),
        ("runtime: process\npid_file: run/a", "invalid value"),
        ("runtime: process\npid: [1]", "invalid value"),
        ("runtime: rnuc", 'did you mean "runc"?'),
        ("runtime: [runc]", "one name is expected"),
    ],
)
def test_wrong_runtimes(tmp_path: Path, body: str, words: str) -> None:
    (message,) = errors(tmp_path, web(body))
    assert words in message


# errors


def test_an_unknown_attribute_is_said_as_the_style_has_it(tmp_path: Path) -> None:
    assert errors(tmp_path, web("nics:\n- name: eth0\n  mtuu: 1400")) == [
        'a.yaml:6:7: unknown attribute\n  nic "eth0" has no attribute "mtuu"\n  did you mean "mtu"?'
    ]


@pytest.mark.parametrize(
    ("text", "place", "guess"),
    [
        ("version: 1\ncontainer: {}", "2:1", "containers"),
        ("version: 1\ncontainers: {web: {nic: []}}", "2:20", "nics"),
        ("version: 1\ncontainers: {web: {device: []}}", "2:20", "devices"),
        ("version: 1\ncontainers: {web: {devices: [{source: /dev/a, io: {read_bsp: 1}}]}}", "2:52", "read_bps"),
        ("version: 1\ncontainers: {web: {profiles: [loging]}}\nprofiles: {logging: }", "2:31", "logging"),
        ("version: 1\ncontainers: {web: {mounts: [{source: /a, target: /b, propagation: rslav}]}}", "2:67", "rslave"),
        ("version: 1\ncontainers: {web: {routes: [{via: 10.0.0.1, metrik: 5}]}}", "2:45", "metric"),
        ("version: 1\nruntime: dokcer", "2:10", "docker"),
        ("version: 1\nprofiles: {p: {monts: []}}", "2:16", "mounts"),
    ],
)
def test_unknown_words_are_answered_with_a_guess(tmp_path: Path, text: str, place: str, guess: str) -> None:
    message = errors(tmp_path, text)[0]
    assert message.startswith(f"a.yaml:{place}: ")
    assert f'did you mean "{guess}"?' in message


def test_without_a_likely_word_all_are_named(tmp_path: Path) -> None:
    assert "known: version, runtime, profiles, containers" in errors(tmp_path, "version: 1\nqqq: 1")[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("containers: {}", "missing version"),
        ("version: 2", "unknown version"),
        ("version: [1]", "unknown version"),
        ("version: 1.0", "unknown version"),
        ("version: ", "unknown version"),
        ("- version: 1", "not a mapping"),
        ("version", "not a mapping"),
        ("version: 1\ncontainers: [web]", "not a mapping"),
        ("version: 1\ncontainers: web", "not a mapping"),
        ("version: 1\ncontainers: {web: [a]}", "not a mapping"),
        ("version: 1\nprofiles: 5", "not a mapping"),
        ("version: 1\ncontainers: {a/b: }", "invalid container name"),
        ("version: 1\ncontainers: {-a: }", "invalid container name"),
        ("version: 1\ncontainers: {.a: }", "invalid container name"),
        ('version: 1\ncontainers: {"": }', "invalid container name"),
        ('version: 1\ncontainers: {"a\\nb": }', "invalid container name"),
        ('version: 1\ncontainers: {"a b": }', "invalid container name"),
        (f"version: 1\ncontainers:\n  {'ä' * 128}:\n", "more than 255 bytes"),
        ("version: 1\nprofiles: {p: {runtime: runc}}", "misplaced key"),
        ("version: 1\nprofiles: {p: {profiles: [q]}}", "misplaced key"),
        ("version: 1\nprofiles: {p: {pid: 5}}", "misplaced key"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, words: str) -> None:
    assert words in errors(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("nics: {name: e}", "4:11: not a list"),
        ("nics: eth0", "4:11: not a list"),
        ("nics: [[{name: e}]]", "4:12: invalid nic"),
        ("nics: [eth0]", "4:12: invalid nic"),
        ("nics: [~]", "4:12: empty nic"),
        ("nics: [{mtu: 1500}]", '4:12: missing attribute\n  a nic needs "name"'),
        ("nics: [{name: }]", '4:12: missing attribute\n  a nic needs "name"'),
        ("nics: [{name: e, mtu: [1]}]", "4:27: invalid value"),
        ("nics: [{name: e, mtu: {a: 1}}]", "4:27: invalid value"),
        ("nics: [{name: e, mtu: 1500.5}]", '4:27: invalid value\n  nic "e", mtu:'),
        ("nics: [{name: e, addresses: [10.0.0.1/8, 10.0.0.1/8]}]", "4:46: listed twice"),
        ("nics: [{name: e, addresses: [10.0.0.1/8, ~]}]", "4:46: invalid value"),
        ("nics: [{name: e, addresses: {a: b}}]", "a list of values is expected, not a mapping"),
        ("nics: [{name: e, qlen: 5, txqueuelen: 5}]", "4:31: written twice"),
        ("nics: [{name: e, former_mac: 02:00:00:00:00:01}]", "4:22: unknown attribute"),
        ("nics: [{name: e}, {name: e}]", '4:23: duplicate nic\n  nic "e" of container "web" is already in line 4'),
        ("nics: [{name: e, type: physical}]", "4:12: invalid nic"),
        ("devices: [/dev/a:/dev/b:rwx]", "4:15: invalid value"),
        ("devices: [/dev/a:/dev/b:rw:x]", "4:15: invalid device"),
        ("devices: [{source: /dev/a, io: 5}]", "a mapping is expected"),
        ("devices: [{source: /dev/a, io: []}]", "a mapping is expected"),
        ("devices: [{source: /dev/a, io: {read_iops: 99999999999}}]", "out of range"),
        ("mounts: [/srv]", "4:14: invalid mount"),
        ("mounts: ['/srv:/']", "container's root"),
        ("mounts: ['/srv:/proc/x']", "belongs to the kernel"),
        ("routes: [{to: default}]", "needs via, dev or src"),
        ("cgroup: [memory.max]", "4:13: not a mapping"),
        ("cgroup: {memory.max: [1]}", "4:26: invalid value"),
        ("cgroup: {memory.max: {required: false}}", "4:26: missing attribute"),
        ("cgroup: {memory.max: {value: 1G, name: x}}", "4:38: unknown attribute"),
        ("cgroup: {memory.mx: 1}", "4:14: invalid cgroup"),
        ("modules: [a/b]", "invalid value"),
        ("modules: {a: b}", "not a list"),
        ("modules: [[a]]", "invalid value"),
        ("profiles: [p]", "unknown profile"),
        ("profiles: {p: q}", "not a list"),
    ],
)
def test_wrong_entries(tmp_path: Path, body: str, words: str) -> None:
    messages = errors(tmp_path, web(body))
    assert len(messages) == 1
    assert words in messages[0]


def test_all_errors_are_said_at_once_and_in_file_order(tmp_path: Path) -> None:
    body = "nics:\n- {name: e, mtu: x, mac: y}\n- {nmae: f}\ncgroup: {memory.max: x}\nrouts: []\ndevices: [a]"
    messages = errors(tmp_path, web(body), "version: 3\na: 1\na: 2\n")
    places = [message.split(" ")[0] for message in messages]
    assert places == [
        "a.yaml:5:22:",
        "a.yaml:5:30:",
        "a.yaml:6:8:",
        "a.yaml:7:14:",
        "a.yaml:8:5:",
        "a.yaml:9:15:",
        "b.yaml:1:10:",
        "b.yaml:2:1:",
        "b.yaml:3:1:",
    ]


def test_errors_are_bounded(tmp_path: Path) -> None:
    messages = errors(tmp_path, "version: 1\n" + "".join(f"k{number}: 1\n" for number in range(5000)))
    assert len(messages) == 501
    assert "4500 more are not shown" in messages[-1]


def test_long_and_strange_words_are_shortened_in_messages(tmp_path: Path) -> None:
    key = "k" * 1000
    (message,) = errors(tmp_path, f'version: 1\n"{key}\\e[31m": 1')
    assert len(message) < 300
    (message,) = errors(tmp_path, 'version: 1\n"\\e[31m": 1')
    assert "\x1b" not in message


def test_a_value_without_end_is_refused(tmp_path: Path) -> None:
    (message,) = errors(tmp_path, web(f"nics: [{{name: {'e' * 100_000}}}]"))
    assert "100000 characters" in message
    assert len(message) < 500


def test_limits_of_a_container_are_checked_where_the_entry_is(tmp_path: Path) -> None:
    mounts = "\n".join(f"- /srv/{number}:/data/{number}" for number in range(129))
    (message,) = errors(tmp_path, web(f"mounts:\n{mounts}"))
    assert message.startswith("a.yaml:133:7: invalid mount")
    nics = "\n".join(f"- {{name: e{number}, type: physical, host_name: h{number}}}" for number in range(9))
    (message,) = errors(tmp_path, web(f"nics:\n{nics}"))
    assert message.startswith("a.yaml:13:7: invalid nic")


# profiles and several files

_PROFILES = """
version: 1
profiles:
  p: {mounts: ['/p:/data', '/p:/p']}
  q: {mounts: ['/q:/data', '/q:/q']}
containers:
"""


def sources(configuration: Configuration, container: str = "web") -> dict[str, str]:
    return {a.identity: getattr(r, "source", "") for a, r in configuration.containers[container].resources.items()}


def test_entries_of_profiles_are_appended(tmp_path: Path) -> None:
    found = sources(read(tmp_path, _PROFILES + "  web: {profiles: [p], mounts: ['/w:/w']}\n  db: {profiles: q}"))
    assert found == {"data": "/p", "p": "/p", "w": "/w"}


def test_the_containers_own_entry_wins(tmp_path: Path) -> None:
    text = _PROFILES + "  web: {profiles: [p, q], mounts: ['/w:/data']}"
    assert sources(read(tmp_path, text)) == {"data": "/w", "p": "/p", "q": "/q"}


def test_a_later_profile_wins_over_an_earlier_one(tmp_path: Path) -> None:
    text = _PROFILES + "  web: {profiles: [p, q]}\n  db: {profiles: [q, p]}"
    configuration = read(tmp_path, text)
    assert sources(configuration)["data"] == "/q"
    assert sources(configuration, "db")["data"] == "/p"


def test_an_own_entry_replaces_the_whole_entry_of_the_profile(tmp_path: Path) -> None:
    text = """
version: 1
profiles: {p: {devices: [{source: /dev/a, mode: "0600", uid: 5}]}}
containers: {web: {profiles: p, devices: [{source: /dev/a, uid: 6}]}}
"""
    device = resource(read(tmp_path, text), "web/device/dev/a")
    assert (device.mode, device.uid) == (None, 6)


def test_errors_in_a_profile_are_said_once_and_without_a_user(tmp_path: Path) -> None:
    text = "version: 1\nprofiles: {p: {mounts: [x]}}\ncontainers: {a: {profiles: p}, b: {profiles: p}}"
    assert len(errors(tmp_path, text)) == 1
    assert len(errors(tmp_path, "version: 1\nprofiles: {p: {mounts: [x]}}")) == 1


def test_an_unused_profile_is_a_warning(tmp_path: Path) -> None:
    configuration = read(tmp_path, "version: 1\nprofiles: {p: }\ncontainers: {a: }")
    assert [d.severity for d in configuration.diagnostics] == [Severity.WARNING]
    assert "no container uses profile" in configuration.diagnostics[0].detail


def test_a_profile_may_be_in_another_file(tmp_path: Path) -> None:
    configuration = read(tmp_path, web("profiles: p"), "version: 1\nprofiles: {p: {mounts: ['/a:/b']}}")
    assert sources(configuration) == {"b": "/a"}


def test_a_profile_in_two_files_is_an_error(tmp_path: Path) -> None:
    text = "version: 1\nprofiles:\n  p: {}\ncontainers: {a: {profiles: p}}"
    (message,) = errors(tmp_path, text, text.replace("a:", "b:"))
    assert message.startswith("b.yaml:3:3: duplicate profile")
    assert "a.yaml:3" in message


def test_a_profile_listed_twice_is_an_error(tmp_path: Path) -> None:
    assert "listed twice" in errors(tmp_path, _PROFILES + "  web: {profiles: [p, q, p]}")[0]


def test_a_container_in_two_files_has_the_entries_of_both(tmp_path: Path) -> None:
    one = web("runtime: runc\nmodules: [a, b]\nmounts: ['/a:/a']")
    two = web("runtime: runc\nmodules: [b, c]\nmounts: ['/b:/b']")
    configuration = read(tmp_path, one, two)
    assert sources(configuration) == {"a": "/a", "b": "/b"}
    assert configuration.containers["web"].modules == ("a", "b", "c")


def test_the_same_identity_in_two_files_is_an_error_that_names_both(tmp_path: Path) -> None:
    (message,) = errors(tmp_path, web("mounts: ['/a:/data']"), web("mounts: ['/b:/data']"))
    assert message.startswith("b.yaml:4:14: duplicate mount")
    assert "a.yaml:4" in message


def test_two_files_that_contradict_each_other_are_an_error(tmp_path: Path) -> None:
    (message,) = errors(tmp_path, web("runtime: runc"), web("runtime: crun"))
    assert message.startswith("b.yaml:4:14: contradiction")
    (message,) = errors(tmp_path, "version: 1\nruntime: runc", "version: 1\nruntime: crun")
    assert message.startswith("b.yaml:2:10: contradiction")


# what only one resource can have


def test_a_host_nic_is_in_one_container_only(tmp_path: Path) -> None:
    entry = "{nics: [{name: e, type: physical, host_name: ens5}]}"
    (message,) = errors(tmp_path, f"version: 1\ncontainers:\n  a: {entry}\n  b: {entry}")
    assert message.startswith("a.yaml:4:14: claimed twice")
    assert "a/nic/e" in message
    assert "a.yaml:3" in message


def test_addresses_and_macs_collide_across_containers(tmp_path: Path) -> None:
    entry = "{nics: [{name: e, bridge: br0, mac: 02:00:00:00:00:01, addresses: 10.0.0.1/8}]}"
    assert len(errors(tmp_path, f"version: 1\ncontainers:\n  a: {entry}\n  b: {entry}")) == 2


def test_addresses_on_different_bridges_do_not_collide(tmp_path: Path) -> None:
    one = "{nics: [{name: e, bridge: br0, addresses: 10.0.0.1/8}]}"
    read(tmp_path, f"version: 1\ncontainers:\n  a: {one}\n  b: {one.replace('br0', 'br1')}")


@pytest.mark.parametrize("bridges", [("br0", ""), ("", "br0"), ("", "")])
def test_an_address_on_no_bridge_collides_with_all(tmp_path: Path, bridges: tuple[str, str]) -> None:
    entries = [f"{{nics: [{{name: e, bridge: {bridge or '~'}, addresses: 10.0.0.1/8}}]}}" for bridge in bridges]
    (message,) = errors(tmp_path, f"version: 1\ncontainers:\n  a: {entries[0]}\n  b: {entries[1]}")
    assert "IP address 10.0.0.1" in message


# files and directories


def test_a_directory_is_its_yaml_files_in_order(tmp_path: Path) -> None:
    for name, container in (("2.yml", "b"), ("1.yaml", "a"), (".hidden.yaml", "c"), ("note.txt", "d")):
        (tmp_path / name).write_text(f"version: 1\ncontainers: {{{container}: }}")
    (tmp_path / "sub.d").mkdir()
    assert list(load([str(tmp_path)], KINDS).containers) == ["a", "b"]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(web("mounts: ['/a:/a']"))
    assert len(load([str(file), str(tmp_path), str(file)], KINDS).containers) == 1


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no configuration"):
        load([str(tmp_path)], KINDS)


def test_missing_files_are_said_with_all_other_errors(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 2")
    with pytest.raises(ConfigurationError) as caught:
        load([str(tmp_path / "none.yaml"), str(tmp_path / "a.yaml")], KINDS)
    assert [d.summary for d in caught.value.diagnostics] == ["can't read the file", "unknown version"]


def test_a_link_to_nowhere_in_a_directory_is_an_error(tmp_path: Path) -> None:
    os.symlink("nowhere", tmp_path / "a.yaml")
    with pytest.raises(ConfigurationError, match="can't read"):
        load([str(tmp_path)], KINDS)


def test_the_default_is_the_file_and_else_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="no configuration"):
        default_paths()
    (tmp_path / "scplan.d").mkdir()
    assert default_paths() == ("scplan.d",)
    (tmp_path / "scplan.yaml").touch()
    assert default_paths() == ("scplan.yaml",)


def test_no_container_is_a_warning(tmp_path: Path) -> None:
    assert [d.summary for d in read(tmp_path, "version: 1").diagnostics] == ["no containers"]


# the JSON form


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        5,
        "x",
        {},
        {"version": 2},
        {"version": 1, "containers": {"../x": {}}},
        {"version": 1, "containers": {"web": {"mounts": [{"source": "/a", "target": "/proc/x"}]}}},
        {"version": 1, "containers": {"web": {"mounts": [{"source": "/a", "target": "/b", "made": ["/etc"]}]}}},
        {"version": 1, "containers": {"web": {"nics": [{"name": "e", "mtu": 1.5}]}}},
        {"version": 1, "containers": {"web": {"nics": [{"name": "e", "mtu": True}]}}},
        {"version": 1, "containers": {"web": {"devices": [{"source": "/dev/a", "numbers": "8:0"}]}}},
        {"version": 1, "surprise": 1},
        {"version": 1, "containers": {"web": {"pid": 1}}},
        {"version": 1, "containers": {5: {}}},
        {"version": object()},
    ],
)
def test_a_plan_file_can_not_say_what_files_can_not(document: object) -> None:
    with pytest.raises(ConfigurationError):
        configuration_from_json(document, KINDS)


def test_deep_json_ends_with_an_error() -> None:
    document: list[Any] = []
    for _ in range(5000):
        document = [document]
    with pytest.raises(ConfigurationError, match="nested"):
        configuration_from_json(document, KINDS)


# bounds: a file that is wrong a million times ends soon, with few words


@pytest.mark.parametrize(
    ("head", "unit", "words"),
    [
        ("version: 1\ncontainers:\n web:\n  nics:\n  - name: e\n", "    k{}: 1\n", "too many errors"),
        ("version: 1\ncontainers:\n", " c{}:\n", "too many containers"),
        ("version: 1\ncontainers:\n web:\n  mounts:\n", "  - /a{0}:/b{0}\n", "too many entries"),
        ("version: 1\ncontainers:\n web:\n  nics:\n  - name: e\n    addresses:\n", "    - 10.{0}\n", "at most 1000"),
        ("version: 1\ncontainers:\n web:\n  profiles:\n", "  - p{}\n", "at most 1000"),
    ],
)
def test_endless_files_end_with_an_error(tmp_path: Path, head: str, unit: str, words: str) -> None:
    messages = errors(tmp_path, head + "".join(unit.format(number) for number in range(100_001)))
    assert len(messages) <= 501
    assert words in messages[-1]


@pytest.mark.slow
def test_profiles_do_not_multiply_without_end(tmp_path: Path) -> None:
    settings = "".join(f"    - {{source: /a, target: /b{number}}}\n" for number in range(120))
    containers = "".join(f"  c{number}: {{profiles: p}}\n" for number in range(10_000))
    text = f"version: 1\nprofiles:\n  p:\n    mounts:\n{settings}containers:\n{containers}"
    assert "too many resources" in errors(tmp_path, text)[0]

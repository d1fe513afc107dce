"""Calls of scplan's hook in a container's configuration. OCI runtime specification, lxc.container.conf(5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scplan.runtimes.state_files import read_state

# Both run before the container's own process; createRuntime replaces prestart, which is deprecated.
_OCI_STAGES = ("prestart", "createRuntime")
_LXC_STAGE = "lxc.hook.start-host"
_STATE_DIR = "--state-dir"
DEFAULT_STATE_DIR = "/var/lib/scplan"
"""The state directory of a hook that names none."""


def state_dirs_in_bundle(bundle: str) -> list[str]:
    """State directories for which hooks in a bundle's config.json call scplan before the container's own process."""
    hooks = (read_state(f"{bundle}/config.json") or {}).get("hooks")
    return state_dirs_in(hooks) if isinstance(hooks, dict) else []


def is_in_bundle(bundle: str) -> bool:
    """True if a hook in the bundle's config.json calls scplan before the container's own process."""
    return bool(state_dirs_in_bundle(bundle))


def state_dirs_in(hooks: Mapping[str, object]) -> list[str]:
    """State directories for which `hooks` of an OCI configuration call scplan before the container's own process."""
    entries = [entry for stage in _OCI_STAGES for entry in _list(hooks.get(stage))]
    return [state_dir_of(entry) for entry in entries if isinstance(entry, dict) and runs_scplan(entry)]


def runs_scplan(hook: Mapping[str, object]) -> bool:
    """True if path and arguments of an OCI hook run `scplan hook`, with any Python command line."""
    words = _words(hook)
    return "hook" in words and any("scplan" in word for word in words)


def state_dir_of(hook: Mapping[str, object]) -> str:
    """State directory of scplan's OCI hook: from its arguments, else from its environment."""
    return _chosen(_words(hook), [word for word in _list(hook.get("env")) if isinstance(word, str)])


def _words(hook: Mapping[str, object]) -> list[str]:
    return [word for word in (hook.get("path"), *_list(hook.get("args"))) if isinstance(word, str)]


def _chosen(words: Sequence[str], environment: Sequence[str]) -> str:
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == _STATE_DIR and (equals or index + 1 < len(words)):
            return value if equals else words[index + 1]
    named = (word.partition("=")[2] for word in environment if word.startswith("SCPLAN_STATE_DIR="))
    return next(filter(None, named), DEFAULT_STATE_DIR)


def is_in_lxc_configuration(text: str) -> bool:
    """True if an LXC configuration runs `scplan hook` on the host when the container starts."""
    return bool(state_dirs_in_lxc_configuration(text))


def state_dirs_in_lxc_configuration(text: str) -> list[str]:
    """State directories for which an LXC configuration runs `scplan hook` on the host when the container starts."""
    found = []
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == _LXC_STAGE and "scplan" in value and "hook" in value.split():
            import shlex

            try:
                words = shlex.split(value)
            except ValueError:
                words = value.split()  # an open quote, which a shell would refuse as well
            found.append(_chosen(words, words))
    return found


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []

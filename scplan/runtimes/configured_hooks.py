"""Whether scplan's hook is configured for a container. OCI runtime specification, lxc.container.conf(5)."""

from __future__ import annotations

from collections.abc import Mapping

from scplan.runtimes.state_files import read_state

_OCI_STAGES = ("prestart", "createRuntime")
_LXC_STAGE = "lxc.hook.start-host"


def is_in_bundle(bundle: str) -> bool:
    """Whether a hook of the bundle's config.json runs scplan before the container's own process; False without one."""
    hooks = (read_state(f"{bundle}/config.json") or {}).get("hooks")
    return isinstance(hooks, dict) and has_scplan(hooks)


def has_scplan(hooks: Mapping[str, object]) -> bool:
    """True if one of these hooks of an OCI configuration runs scplan before the container's own process."""
    entries = [entry for stage in _OCI_STAGES for entry in _list(hooks.get(stage))]
    return any(runs_scplan(entry) for entry in entries if isinstance(entry, dict))


def runs_scplan(hook: Mapping[str, object]) -> bool:
    """Whether an OCI hook's path and arguments are those of `scplan hook`, however Python is called for it."""
    words = [word for word in (hook.get("path"), *_list(hook.get("args"))) if isinstance(word, str)]
    return "hook" in words and any("scplan" in word for word in words)


def is_in_lxc_configuration(text: str) -> bool:
    """Whether a configuration of LXC runs `scplan hook` on the host when the container starts."""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == _LXC_STAGE and "scplan" in value and "hook" in value.split():
            return True
    return False


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []

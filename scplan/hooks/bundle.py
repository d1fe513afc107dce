"""Adds scplan's hook to the config.json of a bundle. OCI runtime specification, "Bundle" and "POSIX-platform Hooks"."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from scplan.errors import ScplanError
from scplan.hooks.spec import oci_hooks
from scplan.runtimes.configured_hooks import runs_scplan
from scplan.runtimes.state_files import read_file
from scplan.startup import strict_json
from scplan.store.durable import write_document


def add_hooks(bundle: str, state_dir: str, runtime: str | None) -> str | None:
    """Adds scplan's hook after all other hooks, once for any number of calls. Returns an error message, else None."""
    path = os.path.join(os.path.abspath(bundle), "config.json")
    try:
        text, mode = read_file(path), stat.S_IMODE(os.stat(path).st_mode)
        changed = with_hooks(strict_json.loads(text or b""), oci_hooks(state_dir, runtime))
        if changed is not None:
            # JSON's \ud800 is a lone surrogate in Python, which UTF-8 encodes only with "surrogatepass".
            write_document(path, json.dumps(changed, ensure_ascii=False).encode("utf-8", "surrogatepass"), mode=mode)
    except (ValueError, TypeError) as error:
        return f"{path} is not the configuration of a container: {error}"
    except ScplanError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def with_hooks(config: Any, ours: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """The configuration with `ours` in place of scplan's former hooks; None if it has these hooks already.

    Raises TypeError if `config` is not the configuration of a container.
    """
    if not isinstance(config, dict):
        raise TypeError("it is not a JSON object")
    hooks = config.get("hooks")
    hooks = {} if hooks is None else hooks
    if not isinstance(hooks, dict):
        raise TypeError("hooks is not an object")
    merged = {stage: [one for one in _entries(hooks, stage) if not runs_scplan(one)] for stage in hooks}
    for stage, entries in ours.items():
        merged[stage] = [*merged.get(stage, []), *entries]
    if merged == hooks:
        return None
    return {**config, "hooks": {stage: entries for stage, entries in merged.items() if entries}}


def _entries(hooks: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    entries = [] if hooks[stage] is None else hooks[stage]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TypeError(f"hooks.{stage} is not a list of objects")
    return entries

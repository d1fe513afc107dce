"""Positional arguments of `apply`: configurations or one saved plan, distinguished by their content."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from scplan.errors import UsageError

_HEAD_BYTES = 1 << 16
_CONFIGURATION = re.compile(rb"^(version|runtime|containers|profiles|probes|x-[^:\s]*)[ \t]*:", re.MULTILINE)
_NAMED = (".yaml", ".yml")


def saved_plan(paths: Sequence[str]) -> str | None:
    """Path of the saved plan among the paths; None if all are configurations.

    Raises UsageError for a saved plan with other files.
    """
    plans = [path for path in paths if not _is_configuration(path)]
    if not plans:
        return None
    if len(paths) > 1:
        raise UsageError(f"{plans[0]} is a saved plan: it is applied alone", hint=f"scplan apply {plans[0]}")
    return plans[0]


def _is_configuration(path: str) -> bool:
    """True if the file is a configuration by its content, or by its name if the content is neither.

    A file that can't be read is judged by its name; the error is reported when it is read later.
    """
    if path == "-":
        return True
    if os.path.isdir(path):
        return any(name.endswith(_NAMED) for name in os.listdir(path))
    try:
        # O_NONBLOCK: opening a FIFO otherwise waits for a writer, fifo(7). The reader of either form refuses FIFOs.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            head = os.read(fd, _HEAD_BYTES)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        head = b""
    if head.lstrip().startswith(b"{"):
        return b'"changes"' not in head and b'"containers"' in head
    return path.endswith(_NAMED) or _CONFIGURATION.search(head) is not None

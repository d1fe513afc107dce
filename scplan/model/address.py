"""CONTAINER/KIND/IDENTITY: the name of a resource in plans, records and on the command line."""

from __future__ import annotations

import re

from scplan.errors import UsageError
from scplan.startup.named_tuple import NamedTuple


class Address(NamedTuple):
    """`web/nic/eth1`. The identity may hold slashes (`web/mount/var/log`); container and kind may not."""

    container: str
    kind: str
    identity: str

    def __str__(self) -> str:
        return f"{self.container}/{self.kind}/{self.identity}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that `text` spells.

        Raises UsageError when it has not three non-empty parts.
        """
        parts = text.split("/", 2)
        if len(parts) != 3 or not all(parts):
            raise UsageError(f"not an address: {text!r}", hint="an address is CONTAINER/KIND/IDENTITY: web/nic/eth1")
        return cls(*parts)


class Selection:
    """The addresses that `--target` and `--exclude` globs leave in. `*` also matches slashes; no globs select all."""

    def __init__(self, targets: tuple[str, ...] = (), excludes: tuple[str, ...] = ()) -> None:
        self.targets = targets
        self.excludes = excludes
        self._targets = [_pattern(glob) for glob in targets]
        self._excludes = [_pattern(glob) for glob in excludes]

    def __contains__(self, address: object) -> bool:
        text = str(address)
        if self._targets and not any(pattern.match(text) for pattern in self._targets):
            return False
        return not any(pattern.match(text) for pattern in self._excludes)

    @property
    def is_everything(self) -> bool:
        return not self.targets and not self.excludes


def _pattern(glob: str) -> re.Pattern[str]:
    """The glob as a regular expression; a glob without a slash names a container and all that is in it."""
    import fnmatch

    if "/" not in glob:
        glob += "/*"
    return re.compile(fnmatch.translate(glob))

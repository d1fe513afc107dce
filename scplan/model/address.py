"""CONTAINER/KIND/IDENTITY: the name of a resource in plans, records and on the command line."""

from __future__ import annotations

import re

from scplan.errors import UsageError
from scplan.startup.named_tuple import NamedTuple


class Address(NamedTuple):
    """Name of a resource: `web/nic/eth1`. Only the identity may have slashes: `web/mount/var/log`."""

    container: str
    kind: str
    identity: str

    def __str__(self) -> str:
        return f"{self.container}/{self.kind}/{self.identity}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address written as `text`. Raises UsageError unless it has three non-empty parts."""
        parts = text.split("/", 2)
        if len(parts) != 3 or not all(parts):
            raise UsageError(f"not an address: {text!r}", hint="an address is CONTAINER/KIND/IDENTITY: web/nic/eth1")
        return cls(*parts)


class Selection:
    """The addresses that `--target` and `--exclude` select; all, if there are no globs. `*` also matches slashes."""

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
    """The glob as a regular expression. A glob without a slash matches a container and all of its resources."""
    import fnmatch

    if "/" not in glob:
        glob += "/*"
    return re.compile(fnmatch.translate(glob))

"""A change to a text file of the host, such as the configuration of a runtime."""

from __future__ import annotations

from scplan.startup.named_tuple import NamedTuple


class Edit(NamedTuple):
    """Content of a file before and after a change; None if the file does not exist.

    `then` is what the user has to do to make the change effective.
    """

    path: str
    before: str | None
    after: str | None
    then: str = ""

    @property
    def changes(self) -> bool:
        return self.before != self.after

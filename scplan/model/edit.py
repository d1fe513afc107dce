"""A change to a text file of the host: the configuration of a runtime."""

from __future__ import annotations

from scplan.startup.named_tuple import NamedTuple


class Edit(NamedTuple):
    """What becomes of a file; None: there is none. `then` says what is left to do for it to count."""

    path: str
    before: str | None
    after: str | None
    then: str = ""

    @property
    def changes(self) -> bool:
        return self.before != self.after

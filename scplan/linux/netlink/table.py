"""The links of a namespace by index, read no sooner and no further than they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scplan.linux.netlink.records import Link
from scplan.linux.netlink.rtnl import Rtnl

# So many links are asked for one by one; whoever wants more gets all of them in one dump.
_ALONE = 8


class LinkTable(Mapping[int, Link]):
    """As they were when first asked for. A few look-ups after a change don't pay for reading a thousand links."""

    def __init__(self, rtnl: Rtnl) -> None:
        self._rtnl = rtnl
        self._asked: dict[int, Link | None] = {}
        self._all: dict[int, Link] | None = None

    def __getitem__(self, index: int) -> Link:
        if self._all is None and index not in self._asked and len(self._asked) < _ALONE:
            self._asked[index] = self._rtnl.link(index)
        link = self._asked[index] if self._all is None and index in self._asked else self._whole().get(index)
        if link is None:
            raise KeyError(index)
        return link

    def __iter__(self) -> Iterator[int]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def _whole(self) -> dict[int, Link]:
        if self._all is None:
            self._all = {link.index: link for link in self._rtnl.links()}
        return self._all

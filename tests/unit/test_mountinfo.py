"""The kernel's list of mounts as text."""

from __future__ import annotations

import pytest

from scplan.linux.mounts.mountinfo import escape, parse_mountinfo

HEAD = b"22 28 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
PLACES = ["/mnt/data", "/mnt", "/mnt/data/in", "/a b", "/tab\there", "/line\nhere", "/back\\slash", "/carriage\rreturn"]


def listed(*points: str) -> bytes:
    """A list of mounts at these points, over one at the root."""
    lines = [b"%d 22 7:0 / %b ro master:1 - ext4 /dev/loop0 ro\n" % (30 + n, escape(p)) for n, p in enumerate(points)]
    return HEAD + b"".join(lines)


def test_all_mounts_are_in_kernel_order() -> None:
    mounts = parse_mountinfo(listed(*PLACES))
    assert [mount.point for mount in mounts] == ["/", *PLACES]
    assert [mount.id for mount in mounts] == [22, *range(30, 30 + len(PLACES))]
    assert (mounts[1].read_only, mounts[1].propagation, mounts[1].parent) == (True, "slave", 22)


@pytest.mark.parametrize("place", PLACES)
def test_those_at_a_point_are_found_among_others(place: str) -> None:
    only = frozenset([escape(place)])
    assert [mount.point for mount in parse_mountinfo(listed(*PLACES), only)] == [place]
    assert [mount.id for mount in parse_mountinfo(listed(place, *PLACES, place), only)] == [
        30,
        31 + PLACES.index(place),
        31 + len(PLACES),
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 40])
def test_few_and_many_points_give_the_same(count: int) -> None:
    points = [f"/mnt/{number}" for number in range(40)]
    only = frozenset(map(escape, points[:count]))
    assert [mount.point for mount in parse_mountinfo(listed(*points), only)] == points[:count]


def test_a_point_counts_only_where_points_stand() -> None:
    text = HEAD + b"30 22 7:0 /mnt/data /srv rw - ext4 /mnt/data rw\n31 22 7:0 / /mnt/data rw - ext4 /mnt/data rw"
    assert [mount.id for mount in parse_mountinfo(text, frozenset([b"/mnt/data"]))] == [31]
    assert parse_mountinfo(b" /mnt/data \n" * 3, frozenset([b"/mnt/data"])) == []

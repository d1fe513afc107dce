"""What is made of NamedTuple behaves as typing's does."""

from __future__ import annotations

import pickle
from typing import Generic, TypeVar

import pytest

from scplan.startup.named_tuple import NamedTuple

T = TypeVar("T")


class Point(NamedTuple):
    """A place."""

    x: int
    y: int = 0

    @property
    def swapped(self) -> Point:
        return Point(self.y, self.x)

    def __str__(self) -> str:
        return f"{self.x}:{self.y}"


class Holder(NamedTuple, Generic[T]):
    held: T


class Marker(Point):
    """A subclass that is asked for first."""


def test_fields_by_position_by_name_and_by_default() -> None:
    assert Point(1, 2) == Point(x=1, y=2) == (1, 2)
    assert Point(1).y == 0
    x, y = Point(3, 4).swapped
    assert (x, y, str(Point(3, 4)), repr(Point(3, 4))) == (4, 3, "3:4", "Point(x=3, y=4)")
    assert Point.__doc__ == "A place."
    assert not hasattr(Point(1), "__dict__")


def test_replacing_and_pickling_keep_the_class() -> None:
    changed = Point(1, 2)._replace(y=5)
    assert (type(changed), changed) == (Point, (1, 5))
    assert type(pickle.loads(pickle.dumps(changed))) is Point
    assert changed._asdict() == {"x": 1, "y": 5}
    with pytest.raises(ValueError, match="no field 'z'"):
        changed._replace(z=1)  # type: ignore[call-arg]  # what is tested


def test_a_wrong_call_names_the_field() -> None:
    with pytest.raises(TypeError, match="'x'"):
        Point()  # type: ignore[call-arg]  # what is tested
    with pytest.raises(TypeError, match="'z'"):
        Point(1, z=2)  # type: ignore[call-arg]  # what is tested
    with pytest.raises(AttributeError):
        Point(1).x = 2  # type: ignore[misc]  # what is tested


def test_a_subclass_made_first_keeps_its_class() -> None:
    class Other(Point):
        pass

    assert type(Marker(1)) is Marker
    assert type(Other(1)) is Other
    assert type(Point(1)) is Point
    assert Holder[int](held=1).held == 1


def test_it_is_matched_by_position() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_a_field_without_a_default_comes_first() -> None:
    with pytest.raises(TypeError, match="without a default"):
        type(NamedTuple)("Wrong", (NamedTuple,), {"__annotations__": {"a": "int", "b": "int"}, "a": 1})

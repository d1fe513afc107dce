"""Named tuples that cost almost nothing until first used: a short-lived command never uses most of its classes.

To type checkers this is typing.NamedTuple, and the classes behave like it. Measured with four fields: typing takes 0.2
ms for a class, mostly to check annotations and to compile a constructor; this module takes 0.01 ms, and 0.05 ms more
for the constructor when the first instance is made.
"""

from __future__ import annotations

from collections import _tuplegetter  # type: ignore[attr-defined]  # collections.namedtuple's own; or a property

TYPE_CHECKING = False  # as in typing, the import of which would take longer than a hook may

if TYPE_CHECKING:
    from typing import Any, Self
    from typing import NamedTuple as NamedTuple


class _Base(tuple):  # type: ignore[type-arg]  # elements of any type
    """Methods that all named tuples share."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()
    _field_defaults: dict[str, Any] = {}  # noqa: RUF012  # a ClassVar would need the import of typing

    def _replace(self, /, **changes: Any) -> Self:
        values = [changes.pop(name, value) for name, value in zip(self._fields, self, strict=True)]
        if changes:
            raise ValueError(f"{type(self).__name__} has no field {', '.join(map(repr, changes))}")
        return tuple.__new__(type(self), values)

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({shown})"

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Arguments of the constructor, for pickle."""
        return tuple(self)


class _Maker(type):
    """Metaclass that makes a subclass of tuple from the body of a subclass of NamedTuple."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
        fields = tuple(body.get("__annotations__", ()))
        defaults = {field: body[field] for field in fields if field in body}
        if fields[len(fields) - len(defaults) :] != tuple(defaults):
            raise TypeError(f"{name}: a field without a default follows one with a default")
        body |= {field: _tuplegetter(index, f"Field {index}") for index, field in enumerate(fields)}
        body |= {"_fields": fields, "__match_args__": fields, "_field_defaults": defaults, "__slots__": ()}

        def compile_constructor(cls: type, /, *args: Any, **kwargs: Any) -> Any:
            constructor = _constructor(fields, defaults)
            made.__new__ = staticmethod(constructor)  # type: ignore[method-assign]  # makes all later instances
            return constructor(cls, *args, **kwargs)

        body["__new__"] = compile_constructor
        made = type(name, tuple(_Base if base is NamedTuple else base for base in bases), body)
        return made


def _constructor(fields: tuple[str, ...], defaults: dict[str, Any]) -> Any:
    """Constructor as a lambda with exactly these parameters: errors name them, and no call is faster."""
    parameters = "".join(f", {field}" + (f"=_defaults[{field!r}]" if field in defaults else "") for field in fields)
    values = "".join(f"{field}, " for field in fields)
    return eval(f"lambda _class{parameters}: _new(_class, ({values}))", {"_new": tuple.__new__, "_defaults": defaults})


if not TYPE_CHECKING:
    NamedTuple = type.__new__(_Maker, "NamedTuple", (), {})

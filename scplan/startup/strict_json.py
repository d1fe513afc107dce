"""JSON as RFC 8259 has it, whoever wrote it.

The standard library's reader also takes NaN and Infinity, and makes an infinity of a number that is too large: values
that no integer can be made of, and that nothing is equal to or less than.
"""

from __future__ import annotations

import json
import math
from typing import Any


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refused)


def loads(text: str | bytes) -> Any:
    """The value of a JSON text, in UTF-8. Raises ValueError, also for one that is nested too deeply."""
    if isinstance(text, bytes):
        # A lone surrogate can be the name of a file.
        text = text.decode("utf-8", "surrogatepass")
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None

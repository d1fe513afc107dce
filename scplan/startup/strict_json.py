"""JSON exactly as RFC 8259 defines it, whoever wrote the text.

The standard library also accepts NaN and Infinity, and reads a number that is too large as infinity. int() fails for
these values, and NaN is neither equal to nor less than anything.
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
    """Value of a JSON text in UTF-8. Raises ValueError, also for a text that is nested too deeply."""
    if isinstance(text, bytes):
        # Python holds a file name that is not UTF-8 as lone surrogates (PEP 383).
        text = text.decode("utf-8", "surrogatepass")
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None

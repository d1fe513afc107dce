"""JSON that is none is refused, whatever the standard library makes of it. RFC 8259."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scplan.startup import strict_json


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        '{"order": -Infinity}',
        "1e999",
        "[-1e400]",
        "9" * 5000,
        "[" * 100_000,
        '{"a":' * 100_000,
        "",
        "{} {}",
        b"\xff\xfe{\x00}\x00",
        b'"\xff"',
    ],
)
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json.loads(text)


@pytest.mark.parametrize("value", [None, True, 0, -(2**70), 1.5, 1e308, "é\ud800", [], {"a": [{"b": ""}]}])
def test_all_else_is_read_as_the_standard_library_does(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert strict_json.loads(text) == strict_json.loads(text.encode("utf-8", "surrogatepass")) == json.loads(text)

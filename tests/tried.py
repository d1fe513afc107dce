"""How many cases the tests that try many of them tried in this run, and how each ended; printed at the end."""

from __future__ import annotations

from collections import Counter, defaultdict

TRIED: dict[str, Counter[str]] = defaultdict(Counter)
"""By what was tried: `TRIED["fuzzed configurations"]["refused"] += 1`."""

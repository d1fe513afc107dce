"""How many cases the fuzzers of this run tried, and how each ended."""

from __future__ import annotations

from collections import Counter

TRIED: Counter[str] = Counter()

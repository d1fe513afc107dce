"""Routes: see kind.py."""

from __future__ import annotations

from scplan.kinds.route.kind import RouteKind
from scplan.kinds.route.record import Route

__all__ = ["Route", "RouteKind"]

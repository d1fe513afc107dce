"""Mounts: listed, attached, parked and detached."""

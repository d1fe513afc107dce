"""Mounts: listed, made, parked and taken away."""

"""Throwaway containers for tests, the demo and the benchmark. See `session.py` first."""

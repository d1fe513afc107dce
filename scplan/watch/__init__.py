"""Supervision of resources that scplan owns: reattaches them when containers start, reports drift as it happens.

Read `supervision.py`, the loop, first. Events are only hints to check a container; `attend.py` has the check.
"""

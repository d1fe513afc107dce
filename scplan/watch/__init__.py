"""Supervision of what scplan owns: plugged in again when containers start, drift reported as it happens.

`supervision.py` first: the loop. Events are only hints; what they lead to is in `attend.py`.
"""

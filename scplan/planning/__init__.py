"""Desired, live and owned resources → ordered changes, and those that take an apply back. Pure."""

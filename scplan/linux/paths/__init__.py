"""Paths and files of a container, reached so that nothing of it leads out or hangs."""

"""Paths and files of a container, reached so that no path leads out of the container or hangs."""

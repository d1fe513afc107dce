"""What runtimes call when a container starts and stops. Starts fast: entry.py imports the rest when there is work."""

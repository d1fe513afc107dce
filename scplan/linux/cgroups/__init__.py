"""Control groups: settings, device rules and I/O limits."""

"""Processes: their namespaces and rights, children that enter containers, and signals."""

"""Execution of a plan: operations are made and read back, and undone when one fails or the process dies."""

"""The commands. Each makes one call of workflow, renders the result, and returns an exit code."""

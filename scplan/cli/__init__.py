"""The commands. Each is one workflow call, its result rendered, and an exit code."""

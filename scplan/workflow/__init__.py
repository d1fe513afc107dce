"""READ FIRST: what every command does, as a few named steps over the stages.

    files ─▶ configuration ─▶ containers located (scene) ─▶ resolved, observed, planned (planning) ─▶ applied (applying)

Each command of the command line is one function of a module here, which it imports as it runs: a command, and a
container's start even more so, needs few of them.
"""

"""READ FIRST: the workflow of every command, as a few named steps over the stages.

    files ─▶ configuration ─▶ containers located (scene) ─▶ resolved, observed, planned (planning) ─▶ applied (applying)

Each command of the command line calls one function of a module here. It imports this module only when it runs: a
command needs few of the modules, and the start of a container even fewer.
"""

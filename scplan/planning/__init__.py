"""Plans from desired, live and owned resources: the ordered changes of an apply, or of its undo. Pure."""

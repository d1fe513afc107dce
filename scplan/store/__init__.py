"""Files that outlive a run: state, journals, saved plans, snapshots, the history, and their locks."""

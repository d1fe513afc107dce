"""Files that outlive a process: records, journals, saved plans, snapshots, the history, and their locks."""

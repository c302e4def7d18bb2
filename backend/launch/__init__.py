"""Which processes run, how they start, stop and are restarted; the only door to backend jobs for the command line."""

"""What every process needs: settings, errors, clock, supervision, ids, metrics, shared files. Knows nothing of engines or clusters."""

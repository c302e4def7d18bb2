"""The laptop: pods as processes, started from a fleet file."""

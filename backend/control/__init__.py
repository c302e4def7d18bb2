"""The control API server: read models, findings, stream."""

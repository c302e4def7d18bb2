"""The contract of the Kubernetes API, as recorded from a real API server, asked of the laptop's."""

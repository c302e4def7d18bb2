"""The laptop's Kubernetes API server: kinds and their schemas, the store, patches, watches and the HTTP front."""

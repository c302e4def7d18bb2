"""Speaking to any Kubernetes API server, the laptop's own or a real one: transport, client, informer, work queue, lease."""

"""What the Kubernetes contract tests share: a thin client, bodies of objects, waiting, kubectl, a fake webhook."""

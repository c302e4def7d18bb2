"""The request path: HTTP, policies, decision records."""

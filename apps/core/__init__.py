"""What every page shares: the hub, the shell around a page, the login, the server."""

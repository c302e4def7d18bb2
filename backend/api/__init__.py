"""Messages and routes of the control API: all that the client side needs to know of the backend. Types only, no I/O."""

"""SGLang beside the shared core: its events and hashes, bodies, routes, figures, and the bootstrap exchange of its pairs."""

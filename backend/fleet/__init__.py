"""Which pods exist and how they are: from a file (later an informer), plus the metrics scraper."""

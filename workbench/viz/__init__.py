"""Data in, HoloViews out. No client here, and no `hv.extension`: pages and notebooks choose their backend."""

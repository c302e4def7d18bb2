"""The dashboard: views over the control API, served by Panel."""

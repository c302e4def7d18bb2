"""What operators import: `workbench.connect()` and the objects behind it."""

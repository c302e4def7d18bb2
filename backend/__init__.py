"""The services and their pure cores. Nothing here imports Panel, a notebook or pandas."""

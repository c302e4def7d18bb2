"""The laptop's cluster: pods as processes, started from a fleet file and kept running.

`fleet_file` reads what is wanted, `runtime` makes it so, `service` serves what is there. Never imports an engine: how one is
started is a table handed over in the settings.
"""

"""The laptop's cluster: pods as processes, from a fleet file or as the Pods of a Kubernetes API.

`kubelet` makes Pods run, `fleet_file` reads what is wanted where there is no API, `runtime` makes it so, `service` serves what is there.
Never imports an engine: how one is started is a table handed over in the settings, or one of images.
"""

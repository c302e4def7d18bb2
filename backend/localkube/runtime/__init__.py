"""The `process` runtime: one operating-system process a pod.

`model` has the types, `steps` every decision (pure), `addresses` who listens where (pure), `commands` what is executed (pure),
`probes` and `service` the sockets and processes.
"""

"""Programs that are kept running: what is decided about them is the same, whatever they run in.

`model` has the types, `steps` every decision (pure), `probing` when which probe is asked (pure), `addresses` who listens where (pure),
`commands` what is executed (pure), `probes` the question itself, `pods` the timers and the record. Programs run in a host: a process
each (`processhost`), objects of this loop (`inprocess`), or timers of the loop's clock (`virtual`).
"""

"""What the client side of a cluster counts, for the registry of whichever process uses it."""

from __future__ import annotations

from backend.core.metrics import Registry

_CALL_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_WORK_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)


class KubeFigures:
    """One a process. Without a registry the figures are kept for nobody, so that callers need no special case."""

    def __init__(self, registry: Registry | None = None) -> None:
        registry = registry or Registry()
        self.calls = registry.histogram(
            "kube_client_call_seconds", "Calls to the API server, by method and status code", ("method", "code"), buckets=_CALL_BUCKETS
        )
        self.retries = registry.counter("kube_client_retries_total", "Calls repeated, by cause", ("cause",))
        self.reloads = registry.counter("kube_client_credential_reloads_total", "Credentials read again, by cause", ("cause",))
        self.watch_restarts = registry.counter("kube_watch_restarts_total", "Watches opened again, by cause", ("resource", "cause"))
        self.relists = registry.counter("kube_relists_total", "Lists of an informer, by cause", ("resource", "cause"))
        self.events = registry.counter("kube_watch_events_total", "Changes that an informer was told", ("resource", "kind"))
        self.objects = registry.gauge("kube_informer_objects", "Objects that an informer holds", ("resource",))
        self.queue_depth = registry.gauge("kube_queue_depth", "Keys that wait for a worker now", ("queue",))
        self.queue_wait = registry.histogram(
            "kube_queue_wait_seconds", "From the moment a key was due until a worker took it", ("queue",), buckets=_WORK_BUCKETS
        )
        self.queue_work = registry.histogram("kube_queue_work_seconds", "Work on one key", ("queue",), buckets=_WORK_BUCKETS)
        self.queue_retries = registry.counter("kube_queue_retries_total", "Keys that failed and wait for another try", ("queue",))
        self.leading = registry.gauge("kube_lease_held", "1 while this process holds the lease", ("lease",))
        self.lease_losses = registry.counter("kube_lease_losses_total", "Leases lost without having been given back", ("lease",))

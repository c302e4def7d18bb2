"""What words of the records mean, for people: classes of predictions, and outcomes with their usual cause and what to do."""

from __future__ import annotations

CLASSES = {
    "exact": "The engine found exactly what the index had promised.",
    "within_block": "It differed by less than one KV block.",
    "raced": "Somebody stored those blocks after the decision.",
    "evicted": "Blocks were removed after the decision.",
    "unknown": "It differed and no event explains why.",
    "unpredicted": "Nothing to compare: no index was asked, or the engine did not report its hit.",
}

OUTCOMES = {
    "upstream_error": (
        "The engine refused or answered with an error, or could not be reached.",
        "Read the pod's log in the state folder (pods/NAME.log); a pod that fails often should be taken out.",
    ),
    "upstream_reset": ("The engine closed the connection before it had answered.", "Look whether the pod was restarted at that time."),
    "timeout": (
        "The engine sent nothing for longer than the gateway waits.",
        "Look at waiting requests of the pod; add pods, or raise limits.first_byte_timeout_s.",
    ),
    "refused": (
        "The gateway refused it: an unknown model, a body that it cannot read, a limit, or no pod that fits.",
        "The answer's x-error-* header said which; repair the client, or the fleet when no pod was ready.",
    ),
    "aborted": ("The pod was about to stop and took no new request.", "Expected during an upgrade; otherwise see why the pod stopped."),
    "truncated": ("The engine went away in the middle of its answer.", "Look at the pod's log and memory at that time."),
    "client_gone": (
        "The client left before its answer was complete.",
        "Compare its time limit with the times to first token above.",
    ),
    "ok": ("The engine answered with an error status, which the client saw.", "Mostly a request that the engine cannot serve."),
}

POD_COLUMNS = {
    "in_flight_mean": "requests on the pod when it was chosen, mean",
    "hit_rate": "cached prompt tokens per prompt token",
    "kv_usage": "share of KV blocks in use by running requests, now",
    "within_a_block": "share of predictions that were exact or off by less than a block",
    "predictions": "requests whose promise could be compared",
}

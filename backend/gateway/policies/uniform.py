"""Random routing: every candidate alike. AIBrix `random`."""

from __future__ import annotations

from backend.gateway.model import Decision, FleetView, NoCandidate, RequestView

NAME = "random"


def choose(request: RequestView, fleet: FleetView, settings: None = None) -> Decision:
    """Raises NoCandidate when `fleet` is empty."""
    count = len(fleet.candidates)
    if not count:
        raise NoCandidate("There is no pod to choose from.")
    return Decision(NAME, int(request.random * count), "random", {"in_flight": fleet.in_flight}, (request, fleet, settings))

"""Least-request routing: the pod with the fewest requests that the gateway itself has under way there. AIBrix `least-request`.

Counting and choosing are one step of the caller, so sixteen requests at once on four idle pods go four to each.
"""

from __future__ import annotations

from backend.gateway.model import Decision, FleetView, NoCandidate, RequestView
from backend.gateway.policies import ties

NAME = "least-request"


def choose(request: RequestView, fleet: FleetView, settings: None = None) -> Decision:
    """Raises NoCandidate when `fleet` is empty."""
    if not fleet.candidates:
        raise NoCandidate("There is no pod to choose from.")
    winner = ties.least_of(fleet.in_flight, request.random)
    return Decision(NAME, winner, "least_request", {"in_flight": fleet.in_flight}, (request, fleet, settings))

"""Paths of the control API and the names of its stream's events."""

from __future__ import annotations

PREFIX = "/api/v1"
FLEET = f"{PREFIX}/fleet"
POD = f"{PREFIX}/pods/{{name}}"
CACHE_MAP = f"{PREFIX}/cache/map"
CACHE_PROBE = f"{PREFIX}/cache/probe"
CACHE_SOURCES = f"{PREFIX}/cache/sources"
DECISIONS = f"{PREFIX}/decisions"
DECISION = f"{PREFIX}/decisions/{{id}}"
FINDINGS = f"{PREFIX}/findings"
STREAM = f"{PREFIX}/stream"
OPENAPI = "/openapi.json"

# kvindex's own HTTP interface; control hands it on under the names above
INDEX_MAP = "/map"
INDEX_PROBE = "/probe"
INDEX_SOURCES = "/sources"
INDEX_STATS = "/stats"
INDEX_HELD = "/held"

EVENT_FLEET = "fleet"
EVENT_DECISIONS = "decisions"
EVENT_FINDINGS = "findings"
EVENT_SOURCES = "sources"
EVENT_RESET = "reset"
"""Sent when `since=` lies before what the server still has: fetch snapshots again."""

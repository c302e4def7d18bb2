"""Answers that need no pod: the list of models, metrics, health."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backend.gateway import answers, body, metrics

if TYPE_CHECKING:
    from backend.gateway.service import Gateway


def answer(api: body.Api, gateway: Gateway, *, close: bool) -> bytes:
    if api == "models":
        # `created` and `owned_by` as AIBrix answers them; models stay listed while their pods are not ready.
        listed = [{"id": model, "object": "model", "created": 0, "owned_by": "aibrix"} for model in sorted(gateway.targets.models)]
        return answers.response(200, msgspec.json.encode({"object": "list", "data": listed}), close=close)
    if api == "metrics":
        return answers.response(200, gateway.render_metrics(), content_type=metrics.CONTENT_TYPE.encode(), close=close)
    state = {"status": "draining" if gateway.draining else "ok"}
    return answers.response(503 if gateway.draining else 200, msgspec.json.encode(state), close=close)

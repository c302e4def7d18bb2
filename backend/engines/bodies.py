"""OpenAI request bodies edited at their top level only: what stands below (messages, tools, token ids) keeps its very bytes, so that both
legs of a disaggregated request have the same prompt tokens. Pure.
"""

from __future__ import annotations

import msgspec

from backend.core.errors import WireError

_ONE, _FALSE = msgspec.Raw(b"1"), msgspec.Raw(b"false")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

Fields = dict[str, msgspec.Raw | dict[str, msgspec.Raw]]


def top_level(body: bytes) -> Fields:
    """The fields of a JSON object with their values as they stand; of doubled ones the last, as JSON parsers have it. Raises WireError."""
    try:
        return dict(_fields.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("request_body", f"the request body is not a JSON object: {error}") from error


def one_token(fields: Fields) -> None:
    """Make it a prefill: one token, whole answer, and nothing that asks for more than that."""
    fields["max_tokens"] = _ONE
    if "messages" in fields or "max_completion_tokens" in fields:
        fields["max_completion_tokens"] = _ONE
    fields["stream"] = _FALSE
    fields.pop("stream_options", None)
    fields.pop("min_tokens", None)

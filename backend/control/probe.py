"""A prompt becomes token ids: by the tokenizer of a ready pod that serves the model, as the gateway does it. Decides nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import msgspec

from backend.api.cache import ProbeRequest
from backend.api.fleet import Pod
from backend.core.errors import InvalidRequest, Unavailable, WireError
from backend.engines.base import adapter

TOKENIZE_TIMEOUT_S = 5.0


async def resolve(asked: ProbeRequest, pods: Sequence[Pod], http: httpx.AsyncClient) -> ProbeRequest:
    """The same question with a model and token ids. Raises InvalidRequest, Unavailable."""
    given = [name for name in ("tokens", "prompt", "messages") if getattr(asked, name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"Exactly one of tokens, prompt and messages is needed, not {' and '.join(given) or 'none'}.",
            param=given[1] if given else "prompt",
        )
    model = resolve_model(asked.model, pods)
    if asked.tokens is not None:
        return ProbeRequest(model=model, tokens=checked_tokens(asked.tokens))
    serving = [pod for pod in pods if pod.model == model and pod.ready]
    if not serving:
        raise Unavailable(
            f"No pod of {model} is ready to tokenize the prompt.", fix="Wait until one is ready, or pass token ids in `tokens`."
        )
    return ProbeRequest(model=model, tokens=await _tokenize(asked, model, serving[0], http))


def resolve_model(model: str, pods: Sequence[Pod]) -> str:
    """The model asked for, or the only one. Raises InvalidRequest."""
    models = sorted({pod.model for pod in pods})
    if model in models:
        return model
    known = f"The fleet serves {', '.join(models) or 'nothing yet'}."
    if model:
        raise InvalidRequest(f"Model {model!r} is not served by any pod.", param="model", fix=known)
    if len(models) != 1:
        raise InvalidRequest("`model` is needed.", param="model", fix=known)
    return models[0]


def checked_tokens(tokens: list[int]) -> list[int]:
    """Raises InvalidRequest for what no tokenizer makes."""
    for at, token in enumerate(tokens):
        if not 0 <= token < 2**32:
            raise InvalidRequest(f"tokens[{at}] is {token}, not a token id.", param="tokens")
    return tokens


async def _tokenize(asked: ProbeRequest, model: str, pod: Pod, http: httpx.AsyncClient) -> list[int]:
    engine = adapter(pod.engine)
    body: dict[str, object] = {"model": model}
    if asked.messages is not None:
        body["messages"] = asked.messages
    else:
        body["prompt"] = asked.prompt
    path, raw = engine.tokenize_request(body)
    try:
        async with asyncio.timeout(TOKENIZE_TIMEOUT_S):
            answer = await http.post(f"http://{pod.address}{path}", content=raw, headers={"Content-Type": "application/json"})
    except (httpx.HTTPError, TimeoutError) as error:
        raise Unavailable(f"{pod.name} does not tokenize: {error or type(error).__name__}.", fix="Try again, or pass token ids.") from error
    if answer.status_code == 400:
        raise InvalidRequest(
            f"{pod.name} refuses to tokenize it: {_message(answer.content)}", param="messages" if asked.messages else "prompt"
        )
    if answer.status_code != 200:
        raise Unavailable(f"{pod.name} answers {answer.status_code} on {path}: {_message(answer.content)}", fix="Pass token ids instead.")
    try:
        return engine.tokenize_response(answer.content)
    except WireError as error:
        raise Unavailable(f"{pod.name}: {error.message}", fix="Pass token ids instead.") from error


class _Message(msgspec.Struct, frozen=True):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Message = _Message()


def _message(body: bytes) -> str:
    """The sentence in an OpenAI error body, or its beginning as it is."""
    try:
        return msgspec.json.decode(body, type=_Refusal).error.message
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace")

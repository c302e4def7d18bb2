"""An OpenAI completions server on a real socket that streams a few tokens, for tests of the load generator. Not an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from tests.fakes.control_api import running


@dataclass
class FakeCompletions:
    """`behaviour` is looked up by the request's number: ok, http_503, cut, abort, stream_error, silent, garbage, no_done."""

    url: str = ""
    behaviour: dict[int, str] = field(default_factory=dict)
    requests: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    models: tuple[str, ...] = ("qwen3-8b",)
    in_flight: int = 0
    most_in_flight: int = 0
    pause_s: float = 0.0
    """Between two tokens."""

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        number = len(self.requests)
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request, number, body)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, number: int, body: dict[str, object]) -> web.StreamResponse:
        behaviour = self.behaviour.get(number, "ok")
        if behaviour == "http_503":
            return web.json_response({"error": {"message": "no pod is ready"}}, status=503)
        if behaviour == "silent":
            await asyncio.sleep(60)
        if behaviour == "garbage":
            assert request.transport is not None
            request.transport.write(b"this is not HTTP\r\n\r\n")
            await asyncio.sleep(0.2)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "request-id": f"r{number}", "target-pod": f"vllm-{number % 2}"}
        )
        await response.prepare(request)
        tokens = int(body["max_tokens"])  # type: ignore[call-overload]
        for at in range(tokens):
            if behaviour == "cut" and at == 1:
                assert request.transport is not None
                request.transport.abort()
                return response
            if behaviour == "stream_error" and at == 1:
                await response.write(b'data: {"error":{"message":"engine died"}}\n\n')
                return response
            last = at == tokens - 1 or (behaviour == "abort" and at == 1)
            reason = b'"abort"' if behaviour == "abort" and last else b'"length"' if last else b"null"
            await response.write(b'data: {"choices":[{"index":0,"text":" a","finish_reason":%b}]}\n\n' % reason)
            await asyncio.sleep(self.pause_s)
            if last:
                break
        prompt = len(body["prompt"])  # type: ignore[arg-type]
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": prompt // 2}}
        await response.write(b"data: " + msgspec.json.encode({"choices": [], "usage": usage}) + b"\n\n")
        if behaviour != "no_done":
            await response.write(b"data: [DONE]\n\n")
        return response


@contextmanager
def completions() -> Iterator[FakeCompletions]:
    """A running fake server."""
    fake = FakeCompletions()
    with running(fake.application()) as url:
        fake.url = url
        yield fake

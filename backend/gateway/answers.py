"""The gateway's own answers: errors in the OpenAI shape with AIBrix's `x-error-*` headers, and plain JSON or text.

One table says status, header, code and parameter of every error; texts are AIBrix's where it has one, since clients match on them.
Mended against upstream: the content type is always `application/json`, a wrong method is 405, an empty body 400.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 503: "service_unavailable"}
_encode = msgspec.json.Encoder().encode


class Problem(Exception):
    """A request that the gateway answers itself. `headers` are whole lines with their line ends."""

    def __init__(
        self, status: int, message: str, *, header: str = "", code: str | None = None, param: str | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.header_lines = f"{header}\r\n".encode("latin-1", "replace") if header else b""
        self.code = code
        self.param = param
        self.close = close
        """The connection cannot be used any further: what follows on it is not to be trusted, or was not read."""

    def body(self) -> bytes:
        return error_body(self.status, self.message, code=self.code, param=self.param)


def error_type(status: int) -> str:
    return _TYPES.get(status, "overloaded_error" if status == 503 else "invalid_request_error" if status < 500 else "api_error")


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None, kind: str | None = None) -> bytes:
    return _encode({"error": {"message": message, "type": kind or error_type(status), "code": code, "param": param}})


def response(status: int, body: bytes, *, extra: bytes = b"", content_type: bytes = b"application/json", close: bool = False) -> bytes:
    """A whole answer; `extra` are header lines."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        status,
        _REASONS.get(status, b"Error"),
        content_type,
        len(body),
        extra,
        b"connection: close\r\n" if close else b"",
        body,
    )


# --- the table: one function an error, in the order in which a request can meet them ---


def bad_request(what: str) -> Problem:
    """Bytes that are not one clear HTTP/1.1 request."""
    return Problem(400, f"malformed HTTP request: {what}", header="x-error-request-body-processing: true", close=True)


def version_not_supported() -> Problem:
    return Problem(505, "only HTTP/1.0 and HTTP/1.1 are spoken here", close=True)


def head_too_large(limit: int) -> Problem:
    return Problem(431, f"request head is larger than {limit} bytes", close=True)


def body_too_large(limit: int) -> Problem:
    return Problem(413, f"request body is larger than {limit} bytes", header="x-error-request-body-processing: true", close=True)


def too_slow(seconds: float) -> Problem:
    return Problem(408, f"request was not complete after {seconds:g} s", close=True)


def unmet_expectation(value: str) -> Problem:
    return Problem(417, f"expectation {value!r} cannot be met", close=True)


def unknown_path() -> Problem:
    return Problem(501, "unknown request path", header="x-error-request-body-processing: true")


def wrong_method(method: str, allowed: str) -> Problem:
    return Problem(405, f"method {method} is not allowed here, use {allowed}", header=f"allow: {allowed}")


def bad_api_key() -> Problem:
    return Problem(401, "Incorrect API key provided", code=CODES[401], param="api_key")


def invalid_body(message: str = "error processing request body", param: str | None = None) -> Problem:
    return Problem(400, message, header="x-error-request-body-processing: true", param=param)


def unknown_model(model: str) -> Problem:
    header = f"x-error-no-model-backends: {_header_text(model)}"
    return Problem(400, f"model {model} does not exist", header=header, code="model_not_found", param="model")


def no_ready_pod(model: str) -> Problem:
    return Problem(503, f"error on getting pods for model {model}", header="x-error-no-model-backends: true", code=CODES[503])


def bad_strategy(strategy: str) -> Problem:
    return Problem(400, f"incorrect routing strategy {strategy}", header="x-error-routing: true")


def bad_filter(what: str) -> Problem:
    return Problem(400, f"incorrect external-filter: {what}", header="x-error-routing: true")


def nothing_passes(selector: str) -> Problem:
    """Pods there are, but none that the request's filter lets through."""
    return no_pod_answers(f"no ready pod has the labels that external-filter asks for: {selector[:256]}")


def no_pair(prefill: int, decode: int) -> Problem:
    """Pods there may be, but none of a prefill and a decode pod of one RoleSet and one revision."""
    return no_pod_answers(f"prefill pods are not ready: no ready pair of one RoleSet and one revision (prefill={prefill}, decode={decode})")


def no_pod_answers(detail: str) -> Problem:
    """Every pod that was tried failed before its first byte."""
    return Problem(503, f"error on selecting target pod: {detail}", header="x-error-routing: true", code=CODES[503])


def bad_gateway(detail: str) -> Problem:
    return Problem(502, f"upstream answer cannot be read: {detail}", header="x-error-response-unknown: true", code="bad_gateway")


def gateway_timeout(detail: str) -> Problem:
    return Problem(504, f"upstream timed out: {detail}", header="x-error-response-unknown: true", code="timeout")


def unreadable_answer() -> Problem:
    """A complete 200 whose body is not JSON."""
    return Problem(500, "upstream response is not JSON", header="x-error-response-unmarshal: true")


def internal(log_id: str) -> Problem:
    return Problem(500, f"internal error, see the log line {log_id}", close=True)


def _header_text(value: str) -> str:
    """Client text in a header: nothing that could end the line or start another."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in value[:256])

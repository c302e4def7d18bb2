"""A certificate of our own for 127.0.0.1, made without any program or library that might be missing.

Clients written in Go (kubectl) send a token over TLS only, so the API speaks TLS even on loopback. The certificate (ECDSA P-256,
self-signed) is made once a state folder; the kubeconfig carries it, and nothing else trusts it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import ssl
import time
from pathlib import Path

from backend.core import files

_P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_YEARS_S = 10 * 365 * 86400
Point = tuple[int, int]

_INTEGER, _BITS, _OCTETS, _OID, _UTF8, _SEQUENCE, _SET, _TIME = 0x02, 0x03, 0x04, 0x06, 0x0C, 0x30, 0x31, 0x17
_CURVE, _PUBLIC_KEY, _SIGNATURE = "2a8648ce3d030107", "2a8648ce3d0201", "2a8648ce3d040302"


def ensure(folder: Path) -> tuple[Path, Path]:
    """Files of the certificate and of its key (0600) in `folder`, made when they are not there."""
    certificate, key = folder / "server.crt", folder / "server.key"
    if not (certificate.exists() and key.exists()):
        made = make(time.time())
        files.write_atomic(key, made[1], mode=0o600)
        files.write_atomic(certificate, made[0], mode=0o644)
    return certificate, key


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    found.load_cert_chain(certificate, key)
    return found


def make(now: float) -> tuple[bytes, bytes]:
    """Certificate and private key, as PEM."""
    secret = secrets.randbelow(_N - 1) + 1
    x, y = _multiply(secret, _G)
    public = b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")
    algorithm = _der(_SEQUENCE, _oid(_SIGNATURE))
    body = _body(public, algorithm, now)
    signed = _der(_SEQUENCE, body, algorithm, _der(_BITS, b"\0", _sign(secret, body)))
    bits = _der(0xA1, _der(_BITS, b"\0", public))
    private = _der(_SEQUENCE, _integer(1), _der(_OCTETS, secret.to_bytes(32, "big")), _der(0xA0, _oid(_CURVE)), bits)
    return _pem("CERTIFICATE", signed), _pem("EC PRIVATE KEY", private)


def _body(public: bytes, algorithm: bytes, now: float) -> bytes:
    """What is signed: names, validity, key, and for which addresses it is good."""
    name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _oid("550403"), _der(_UTF8, b"localkube"))))
    validity = _der(_SEQUENCE, _time(now - 86400), _time(now + _YEARS_S))
    key = _der(_SEQUENCE, _der(_SEQUENCE, _oid(_PUBLIC_KEY), _oid(_CURVE)), _der(_BITS, b"\0", public))
    identity = hashlib.sha1(public, usedforsecurity=False).digest()
    addresses = _der(_SEQUENCE, _der(0x82, b"localhost"), _der(0x87, bytes([127, 0, 0, 1])))
    true = b"\x01\x01\xff"
    extensions = _der(
        _SEQUENCE,
        _der(_SEQUENCE, _oid("551d13"), true, _der(_OCTETS, _der(_SEQUENCE, true))),
        _der(_SEQUENCE, _oid("551d0f"), true, _der(_OCTETS, _der(_BITS, b"\x02\x84"))),
        _der(_SEQUENCE, _oid("551d0e"), _der(_OCTETS, _der(_OCTETS, identity))),
        _der(_SEQUENCE, _oid("551d23"), _der(_OCTETS, _der(_SEQUENCE, _der(0x80, identity)))),
        _der(_SEQUENCE, _oid("551d11"), _der(_OCTETS, addresses)),
    )
    serial = _integer(secrets.randbits(120))
    return _der(_SEQUENCE, _der(0xA0, _integer(2)), serial, algorithm, name, validity, name, key, _der(0xA3, extensions))


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _oid(encoded: str) -> bytes:
    return _der(_OID, bytes.fromhex(encoded))


def _time(seconds: float) -> bytes:
    return _der(_TIME, time.strftime("%y%m%d%H%M%SZ", time.gmtime(seconds)).encode())


def _pem(label: str, data: bytes) -> bytes:
    text = base64.encodebytes(data).decode().replace("\n", "")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _sign(secret: int, data: bytes) -> bytes:
    digest = int.from_bytes(hashlib.sha256(data).digest(), "big")
    nonce = secrets.randbelow(_N - 1) + 1
    r = _multiply(nonce, _G)[0] % _N
    s = pow(nonce, -1, _N) * (digest + r * secret) % _N
    return _der(_SEQUENCE, _integer(r), _integer(s))


def _multiply(factor: int, point: Point) -> Point:
    result: Point | None = None
    while factor:
        if factor & 1:
            result = point if result is None else _add(result, point)
        point = _add(point, point)
        factor >>= 1
    assert result is not None
    return result


def _add(one: Point, two: Point) -> Point:
    """The sum on P-256. Both are different multiples of the generator or equal, so it is never the point at infinity."""
    if one == two:
        slope = (3 * one[0] * one[0] - 3) * pow(2 * one[1], -1, _P) % _P
    else:
        slope = (two[1] - one[1]) * pow(two[0] - one[0], -1, _P) % _P
    x = (slope * slope - one[0] - two[0]) % _P
    return x, (slope * (one[0] - x) - one[1]) % _P

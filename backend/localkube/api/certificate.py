"""A certificate of our own for 127.0.0.1: kubectl sends a token over TLS only, so the API speaks TLS even on loopback.

ECDSA P-256, self-signed, made once a state folder; the kubeconfig carries it, and nothing else trusts it.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from backend.core import files

_YEARS = datetime.timedelta(days=3650)
_CLOCKS = datetime.timedelta(hours=1)
"""A client's clock may be behind ours."""


def ensure(folder: Path) -> tuple[Path, Path]:
    """Files of the certificate and of its key (0600) in `folder`, made when they are not there."""
    certificate, key = folder / "server.crt", folder / "server.key"
    if not (certificate.exists() and key.exists()):
        made = make()
        files.write_atomic(key, made[1], mode=0o600)
        files.write_atomic(certificate, made[0], mode=0o644)
    return certificate, key


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    found.load_cert_chain(certificate, key)
    return found


def make() -> tuple[bytes, bytes]:
    """Certificate and private key, as PEM."""
    # Here, not at the top: needed once in a state folder's life, and its import takes a tenth of a second.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localkube")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, False, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM), private

"""Certificates: given as files, or made here for a trial."""

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from paragone import paths
from paragone.errors import BadConfiguration

DAYS = 30


def check_files(certificate: Path, key: Path) -> None:
    """Raises BadConfiguration where they are not a certificate and its key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as err:
        reason = getattr(err, "reason", None) or err.strerror or str(err)
        raise BadConfiguration(f"{certificate} and {key} are no certificate with its key: {reason}") from None


def self_signed() -> tuple[Path, Path, str]:
    """A certificate for this machine's names, its key, and its SHA-256 fingerprint. Made anew where the
    last has expired. Clients do not trust it by themselves: it is for trials."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = paths.home() / "tls"
    certificate, key = folder / "self-signed.pem", folder / "self-signed.key"
    now = datetime.datetime.now(datetime.UTC)
    if certificate.exists() and key.exists():
        kept = x509.load_pem_x509_certificate(certificate.read_bytes())
        if kept.not_valid_after_utc > now + datetime.timedelta(days=1):
            return certificate, key, _spelled(kept.fingerprint(hashes.SHA256()))
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "paragone")])
    local = [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1")]
    names = [x509.DNSName(n) for n in dict.fromkeys(("localhost", socket.gethostname()))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([*names, *local]), critical=False)
        .sign(private, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(text)
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return certificate, key, _spelled(made.fingerprint(hashes.SHA256()))


def _spelled(digest: bytes) -> str:
    return ":".join(f"{byte:02X}" for byte in digest)

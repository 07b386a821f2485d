"""Content Credentials (C2PA): a signed note in a video file of who made it, and that a model did.

Input: an MP4, a certificate chain and its key (PEM). Output: the same file with a manifest.
Needs the extra `c2pa`; nothing is asked of a network, so there is no time stamp of an authority.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lipcast.errors import InputError, UsageError
from lipcast.media.marking import TRAINED_ALGORITHMIC_MEDIA
from lipcast.media.target import CONTAINERS, container_of, explained, scratch_path

_TYPES = {"mp4": "video/mp4", "mov": "video/quicktime"}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """Files of a certificate chain, the signer's first, and of the signer's private key."""

    certificate: Path
    key: Path

    def as_job(self) -> list[str]:
        """Return the files as a job names them."""
        return [str(self.certificate.resolve()), str(self.key.resolve())]

    def check(self) -> None:
        """Raise UsageError without the extra, InputError for files that cannot sign now."""
        _library()
        _algorithm(self)


def check_signed_target(output: Path) -> None:
    """Raise UsageError for a kind of file that cannot carry a signature."""
    if CONTAINERS.get(output.suffix.lower(), "mp4") not in _TYPES:
        raise UsageError(f"--sign: {output.suffix} files carry no signature; write .mp4 or .mov")


def sign_video(path: Path, signing: SigningKey) -> None:
    """Add a signed manifest to a file, in place of the unsigned one.

    Raises InputError for a certificate or key that cannot be used, OutputError where writing fails.
    """
    c2pa, algorithm = _library(), _algorithm(signing)
    info = c2pa.C2paSignerInfo(
        alg=algorithm.encode(),
        sign_cert=_read(signing.certificate),
        private_key=_read(signing.key),
        ta_url=None,
    )
    kind = _TYPES[container_of(path)]
    signed = scratch_path(path, f".signed{path.suffix}")
    try:
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(json.dumps(_manifest(path, kind))) as builder,
            path.open("rb") as source,
            signed.open("w+b") as target,
        ):
            builder.sign(signer, kind, source, target)
        signed.replace(path)
    except OSError as error:
        raise explained(path, error) from error
    except c2pa.C2paError as error:
        raise InputError(
            f"--sign: {signing.certificate} and {signing.key} cannot sign ({error}); the chain must have the "
            "signer's certificate first, for digital signatures, and that of its authority"
        ) from error
    finally:
        signed.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the verified manifests of a file, as c2pa reports them. Raises InputError without any."""
    c2pa = _library()
    try:
        with c2pa.Reader(str(path)) as reader:
            document: dict[str, Any] = json.loads(reader.json())
    except c2pa.C2paError as error:
        raise InputError(f"{path}: carries no signature that can be read ({error})") from error
    return document


def _library() -> Any:
    try:
        import c2pa
        import cryptography  # noqa: F401 (a part of the same extra)
    except ImportError as error:
        raise UsageError("--sign: c2pa is not installed; pip install 'lipcast[c2pa]'") from error
    return c2pa


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"--sign: cannot read {path}: {error.strerror}") from error


def _algorithm(signing: SigningKey) -> str:
    """Return the algorithm of a key that belongs to a certificate which is valid now."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificates(_read(signing.certificate))[0]
    except ValueError as error:
        raise InputError(
            f"--sign: {signing.certificate} is no certificate in PEM; give the chain, the signer's first"
        ) from error
    try:
        key = load_pem_private_key(_read(signing.key), password=None)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"--sign: {signing.key} is no private key in PEM, or has a password; give it without one"
        ) from error
    if key.public_key() != certificate.public_key():
        raise InputError(f"--sign: {signing.key} is not the key of {signing.certificate}")
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= datetime.now(UTC) <= last:
        raise InputError(
            f"--sign: {signing.certificate} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d} only; renew it"
        )
    return _algorithm_of(key)


def _algorithm_of(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, RSAPrivateKey):
        return "ps256"
    raise InputError("--sign: expected a key of P-256, P-384, P-521, Ed25519 or RSA, got another")


def _manifest(path: Path, kind: str) -> dict[str, Any]:
    maker = {"name": "lipcast", "version": version("lipcast")}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
        "softwareAgent": maker,
    }
    return {
        "claim_generator_info": [maker],
        "format": kind,
        "title": path.name,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }


def signing_key(files: Sequence[str | Path] | None) -> SigningKey | None:
    """Return a certificate and its key, as --sign and jobs name them."""
    return None if files is None else SigningKey(Path(files[0]), Path(files[1]))

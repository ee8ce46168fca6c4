# SPDX-License-Identifier: Apache-2.0
"""Ed25519 keys: made, kept where only their owner reads them, and trusted by a folder of public halves.

To rotate, make a new key, add its public half to the folder that verifiers trust, and keep the old public half there:
what it signed stays valid. To end trust in a key, revoke it (see `expunge.ledger.revocations`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from expunge.errors import RecipeError, VerificationFailed

#: Environment variable with the passphrase of the key file.
PASSPHRASE = "EXPUNGE_KEY_PASSPHRASE"


class PublicKey:
    """The half that verifies; `id` is the SHA-256 (hex) of its DER SubjectPublicKeyInfo."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self.key = key
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(der).hexdigest()

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether the signature is this key's over the message."""
        try:
            self.key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def pem(self) -> bytes:
        """Return the key as PEM text."""
        return self.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class SigningKey:
    """The half that signs."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key, self.public = key, PublicKey(key.public_key())

    def sign(self, message: bytes) -> bytes:
        """Return the signature over a message, 64 bytes."""
        return self._key.sign(message)


def generate_key(path: Path) -> SigningKey:
    """Make a key; write it to `path`, readable by its owner alone, and its public half to `path` with `.pub` added.

    With the environment variable EXPUNGE_KEY_PASSPHRASE the file is encrypted under it.

    Raises:
        RecipeError: if there is a file already: a key is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, _encryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise RecipeError("there is a key already", field="key", value=str(path),
                          remedy="Choose another path; keys are never overwritten") from error  # fmt: skip
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    signing = SigningKey(key)
    Path(f"{path}.pub").write_bytes(signing.public.pem())
    return signing


def load_key(path: Path) -> SigningKey:
    """Return the key of a file.

    Raises:
        RecipeError: if others than its owner may read the file, it is no Ed25519 key, or its passphrase is wrong.
    """
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", field="key", value=str(path),
                          remedy="Make one: expunge key new PATH") from error  # fmt: skip
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RecipeError(f"others may read it: mode {stat.S_IMODE(mode):o}", field="key", value=str(path),
                          remedy=f"chmod 600 {path}, and ask who has read it")  # fmt: skip
    try:
        key = serialization.load_pem_private_key(pem, _passphrase())
    except (ValueError, TypeError) as error:
        raise RecipeError(f"cannot be opened: {error}", field="key", value=str(path),
                          remedy=f"Set {PASSPHRASE} to its passphrase") from error  # fmt: skip
    if not isinstance(key, Ed25519PrivateKey):
        raise RecipeError("is no Ed25519 key", field="key", value=str(path), remedy="Make one: expunge key new PATH")
    return SigningKey(key)


def trusted_keys(path: Path) -> dict[str, PublicKey]:
    """Return the public keys of a PEM file, or of every `*.pub` and `*.pem` file in a folder, by id.

    Raises:
        VerificationFailed: if there is none, or one cannot be read.
    """
    files = sorted(f for f in path.iterdir() if f.suffix in (".pub", ".pem")) if path.is_dir() else [path]
    keys = [_public(file) for file in files]
    if not keys:
        raise VerificationFailed("holds no public key", field="keys", value=str(path), remedy="Give .pub files")
    return {key.id: key for key in keys}


def _public(path: Path) -> PublicKey:
    try:
        pem = path.read_bytes()
        key = serialization.load_pem_public_key(pem)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise VerificationFailed(f"is no public key: {error}", field="keys", value=str(path),
                                 remedy="Give the .pub file beside the signing key") from error  # fmt: skip
    if not isinstance(key, Ed25519PublicKey):
        raise VerificationFailed("is no Ed25519 key", field="keys", value=str(path), remedy="Remove it")
    found = PublicKey(key)
    if found.pem() != pem:
        raise VerificationFailed("is not in the form in which it was written: bytes were changed", field="keys",
                                 value=str(path), remedy="Get the .pub file again from its owner")  # fmt: skip
    return found


def _passphrase() -> bytes | None:
    text = os.environ.get(PASSPHRASE)
    return text.encode() if text else None


def _encryption() -> serialization.KeySerializationEncryption:
    found = _passphrase()
    return serialization.NoEncryption() if found is None else serialization.BestAvailableEncryption(found)

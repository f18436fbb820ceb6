"""Encryption at rest and derived keys, all from the one `SECRET_KEY`, each purpose with a key of its own."""

import base64
from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class SecretUnreadableError(ValueError):
    """None of the keys opens it: the secret key was changed without naming the old one, or the bytes are damaged."""


class SecretBox:
    """Encrypts with the current key; opens what the current or a previous one has closed.

    `purpose` separates uses: what was closed for one can't be opened for another.
    """

    def __init__(self, secret_key: str, previous_keys: tuple[str, ...] = ()) -> None:
        self._secrets = tuple(key.encode() for key in (secret_key, *previous_keys))
        self._fernet = cache(self._make_fernet)

    def encrypt(self, data: bytes, purpose: str) -> bytes:
        """Authenticated ciphertext, about 4/3 of the data plus 76 bytes."""
        return self._fernet(purpose).encrypt(data)

    def decrypt(self, data: bytes, purpose: str) -> bytes:
        """The bytes that `encrypt` was given for the same purpose. Raises `SecretUnreadableError`."""
        try:
            return self._fernet(purpose).decrypt(data)
        except InvalidToken as error:
            raise SecretUnreadableError(f"no key opens this {purpose} secret") from error

    @property
    def mark(self) -> str:
        """Tells the current key from others without giving anything of it away; for finding what older ones closed."""
        return self.derive("mark")[:8].hex()

    def derive(self, purpose: str) -> bytes:
        """32 bytes for signing and the like, always the same for the current key and this purpose."""
        return _hkdf(self._secrets[0], f"derive:{purpose}")

    def _make_fernet(self, purpose: str) -> MultiFernet:
        keys = (_hkdf(secret, f"encrypt:{purpose}") for secret in self._secrets)
        return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])


def _hkdf(secret: bytes, info: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"studio:{info}".encode()).derive(secret)

"""The secret from which pseudonyms are made, and what is made from it.

Every pseudonym is an HMAC-SHA-256 of the old value under one key, so the same input has the same
pseudonym in every file and every run, nothing has to be stored, and without the key nobody can go
back, not even by hashing every possible patient number.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medloupe.errors import ConfigError

_SHORTEST: Final = 32  # characters: 128 bits where they are hexadecimal
_LONGEST_SHIFT: Final = 3650


@dataclass(frozen=True)
class PseudonymKey:
    """Makes pseudonyms; `secret` never shows in its repr."""

    secret: bytes = field(repr=False)

    @classmethod
    def make(cls, path: Path) -> PseudonymKey:
        """A new random key of 256 bits, written to `path` so that only its owner can read it."""
        line = secrets.token_hex(32)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(line + "\n")
        return cls(line.encode())

    @classmethod
    def load(cls, path: Path) -> PseudonymKey:
        """The key in a file: its content without white space at the ends.

        Raises:
            ConfigError: it cannot be read, or is short enough to be guessed.
        """
        try:
            secret = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"the key cannot be read: {error.strerror}",
                file=str(path),
                remedy="Name a key file, or leave the option out and one is made",
            ) from None
        if len(secret) < _SHORTEST:
            raise ConfigError(
                f"the key has {len(secret)} characters, fewer than {_SHORTEST}: it could be guessed",
                file=str(path),
                remedy="Make one with: openssl rand -hex 32",
            )
        return cls(secret)

    @property
    def check(self) -> str:
        """Tells two keys apart without telling anything of either."""
        return self._digest("check", "").hex()[:12]

    def uid(self, old: str) -> str:
        """A UID of the form `2.25.` + UUID as one number (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', old.strip())[:16], version=4).int}"

    def patient(self, identity: str) -> str:
        """The new Patient ID and Patient's Name of whoever had this Patient ID: `P` and 16 digits."""
        return "P" + self._digest("patient", identity.strip()).hex()[:16].upper()

    def name(self, old: str) -> str:
        """A name for a file or folder, 16 hexadecimal digits."""
        return self._digest("name", old).hex()[:16]

    def days(self, identity: str) -> int:
        """By how many days this patient's dates go back: -1 to -3,650."""
        number = int.from_bytes(self._digest("days", identity.strip())[:8], "big")
        return -1 - number % _LONGEST_SHIFT

    def _digest(self, purpose: str, value: str) -> bytes:
        return hmac.new(self.secret, f"{purpose}\0{value}".encode(), hashlib.sha256).digest()

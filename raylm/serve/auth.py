"""Bearer tokens: several keys, known by digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from raylm.serve.config import Key, is_loopback
from raylm.serve.errors import ApiError

ANYONE = Key(name="loopback", sha256="0" * 64, write=True)
"""Who asks from this machine where there are no keys."""


def digest(token: bytes) -> str:
    """What a key keeps of its token. Tokens have 256 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(token).hexdigest()


def new_token(name: str) -> tuple[str, Key]:
    """A fresh token and its key."""
    token = f"raylm-{secrets.token_urlsafe(32)}"
    return token, Key(name=name, sha256=digest(token.encode()))


class Keys:
    """Who a request comes from."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)

    def who(self, header: bytes | None, peer: str | None) -> Key:
        """The key of an Authorization header.

        Args:
            header: its bytes, None when there is none.
            peer: address of the client.

        Raises:
            ApiError: 401 without a known token; 403 from another machine where there are no keys.
        """
        if not self.keys:
            if peer is not None and not is_loopback(peer):
                raise ApiError(403, "loopback_only", "this server has no keys, so it answers its own machine only")
            return ANYONE
        scheme, _, token = (header or b"").partition(b" ")
        presented = digest(token.strip())
        found = None
        for key in self.keys:  # all of them, so that time does not tell which one is near
            if hmac.compare_digest(key.sha256, presented):
                found = key
        if scheme.lower() != b"bearer" or found is None:
            asked = "send the header `Authorization: Bearer TOKEN`"
            message = f"a token is needed: {asked}" if header is None else f"the token is not known: {asked}"
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
        return found

"""Access tokens: signed, short-lived, and tied to a session so that they end with it."""

import time
from dataclasses import dataclass
from uuid import UUID, uuid4

import jwt

from workflows.contracts.errors import UnauthenticatedError

_ALGORITHM = "HS256"
_TYPE = "access"


@dataclass(frozen=True)
class AccessClaims:
    """What an access token says. `family`: the session that it belongs to."""

    user_id: int
    family: UUID


class AccessTokens:
    """Issues and reads them. Claims: `sub, iat, exp, jti, typ`; `jti` is the session's id, a dot, and a random one."""

    def __init__(self, key: bytes, lifetime_s: int) -> None:
        self._key = key
        self.lifetime_s = lifetime_s

    def issue(self, user_id: int, family: UUID) -> str:
        """A token for this session, valid from now on for `lifetime_s`."""
        now = int(time.time())
        claims = {
            "sub": str(user_id),
            "iat": now,
            "exp": now + self.lifetime_s,
            "jti": f"{family}.{uuid4()}",
            "typ": _TYPE,
        }
        return jwt.encode(claims, self._key, _ALGORITHM)

    def read(self, token: str) -> AccessClaims:
        """The claims of a token that is ours, of the right type and not expired. Raises `UnauthenticatedError`."""
        try:
            claims = jwt.decode(
                token, self._key, algorithms=[_ALGORITHM], options={"require": ["sub", "iat", "exp", "jti", "typ"]}
            )
            if claims["typ"] == _TYPE:
                return AccessClaims(int(claims["sub"]), UUID(claims["jti"].partition(".")[0]))
        except (jwt.InvalidTokenError, ValueError) as error:
            raise invalid_credentials() from error
        raise invalid_credentials()


def invalid_credentials() -> UnauthenticatedError:
    """One answer for every way in which credentials can be missing or wrong."""
    return UnauthenticatedError("Sign in first: the credentials are missing, expired or not valid.")

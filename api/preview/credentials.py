"""What opens a preview, and what must never reach the server behind it: our cookies, our tokens, our keys."""

import time
from collections.abc import Iterable
from urllib.parse import urlsplit

import jwt

from storage.credentials import API_KEY_PREFIX
from storage.previews import TOKEN_PREFIX
from storage.secret_box import SecretBox
from workflows.contracts.names import PREVIEW_COOKIE, PREVIEW_FRAME_COOKIE, ProjectRef

COOKIE_LIFETIME_S = 12 * 3600

_ALGORITHM = "HS256"
_TYPE = "preview"
_OWN_COOKIES = {PREVIEW_COOKIE, PREVIEW_FRAME_COOKIE, "studio_refresh"}


class PreviewCookies:
    """Issues and reads the cookie: a signed note that says whose preview it opens, and until when."""

    def __init__(self, secrets: SecretBox, *, https: bool) -> None:
        self._key = secrets.derive("preview-cookie")
        self._secure = "; Secure" if https else ""

    def issue(self, ref: ProjectRef) -> list[str]:
        """Values for `Set-Cookie`: the cookie, and its twin for a page that shows the preview in a frame.

        Neither has a `Domain`: only the host that set it ever gets it back.
        """
        now = int(time.time())
        claims = {
            "sub": str(ref.user_id),
            "project": ref.project_id,
            "iat": now,
            "exp": now + COOKIE_LIFETIME_S,
            "typ": _TYPE,
        }
        token = jwt.encode(claims, self._key, _ALGORITHM)
        common = f"Path=/; Max-Age={COOKIE_LIFETIME_S}; HttpOnly"
        return [
            f"{PREVIEW_COOKIE}={token}; {common}; SameSite=Lax{self._secure}",
            f"{PREVIEW_FRAME_COOKIE}={token}; {common}; SameSite=None; Secure; Partitioned",
        ]

    def opens(self, cookie_headers: Iterable[str], ref: ProjectRef) -> bool:
        """Whether one of the request's cookies was issued for this project and is in its time."""
        return any(
            self._is_for(value, ref)
            for name, value in _pairs(cookie_headers)
            if name in {PREVIEW_COOKIE, PREVIEW_FRAME_COOKIE}
        )

    def _is_for(self, token: str, ref: ProjectRef) -> bool:
        try:
            claims = jwt.decode(
                token, self._key, algorithms=[_ALGORITHM], options={"require": ["sub", "project", "exp", "typ"]}
            )
        except jwt.InvalidTokenError:
            return False
        return (claims["typ"], claims["sub"], claims["project"]) == (_TYPE, str(ref.user_id), ref.project_id)


class OwnAuthorization:
    """Tells our own bearer credentials from those of the app behind a preview."""

    def __init__(self, secrets: SecretBox) -> None:
        self._key = secrets.derive("access-token")

    def recognises(self, header: str) -> bool:
        """Whether an `Authorization` header holds one of our API keys or access tokens, be it expired."""
        _, _, token = header.strip().partition(" ")
        token = token.strip()
        if token.startswith((API_KEY_PREFIX, TOKEN_PREFIX)):
            return True
        try:
            jwt.decode(token, self._key, algorithms=[_ALGORITHM], options={"verify_exp": False})
        except jwt.InvalidTokenError:
            return False
        return True


def foreign_cookies(cookie_headers: Iterable[str]) -> str | None:
    """The `Cookie` header without our own, every other one as it came; None when nothing is left."""
    kept = [
        piece
        for header in cookie_headers
        for piece in header.split(";")
        if piece.strip() and piece.partition("=")[0].strip() not in _OWN_COOKIES
    ]
    return ";".join(kept).strip() or None


def token_in(uri: str) -> str | None:
    """Our token in a request's query string; an app's own `token` is none of our business."""
    for piece in urlsplit(uri).query.split("&"):
        if piece.startswith(f"token={TOKEN_PREFIX}"):
            return piece.removeprefix("token=")
    return None


def without_token(uri: str) -> str:
    """The path and query without our token, the rest as it came."""
    path, mark, query = uri.partition("?")
    kept = "&".join(piece for piece in query.split("&") if not piece.startswith(f"token={TOKEN_PREFIX}"))
    return path + (mark + kept if kept else "")


def _pairs(cookie_headers: Iterable[str]) -> Iterable[tuple[str, str]]:
    for header in cookie_headers:
        for piece in header.split(";"):
            name, _, value = piece.partition("=")
            yield name.strip(), value.strip()

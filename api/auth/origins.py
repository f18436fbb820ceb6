"""Which pages may open WebSockets: the browser asks nobody before it does, unlike for other requests."""

from typing import Final
from urllib.parse import urlsplit

from fastapi import WebSocket

from api.services import ApiConfig
from workflows.contracts.errors import DeniedError

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def check_origin(websocket: WebSocket, config: ApiConfig) -> None:
    """Refuse a page of another site. A program sends no `Origin`, and has nothing that another site could abuse.

    Raises `DeniedError` `bad_origin`.
    """
    origin = websocket.headers.get("origin")
    if origin is None:
        return
    allowed = {_origin(url) for url in (config.public_url, *config.cors_origins)}
    if _origin(origin) not in allowed:
        raise DeniedError("A page of this origin may not open a WebSocket here.", code="bad_origin")


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None

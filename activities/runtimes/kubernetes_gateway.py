"""How an ingress controller learns what stands before a preview: annotations on the project's Ingress."""

from typing import Literal
from urllib.parse import urlencode

_TRAEFIK = "traefik.ingress.kubernetes.io"
_NGINX = "nginx.ingress.kubernetes.io"

_PASSED_ON = "X-Preview-User,Cookie,Authorization,X-Preview-Token"
"""Taken from the gate's answer in place of the request's own; one that the answer lacks is taken out."""

_NO_BOUND_S = "86400"
"""nginx must have a bound: a stream or WebSocket that is silent for a day."""


def ingress_annotations(
    gateway: Literal["traefik", "nginx"],
    host: str,
    middlewares: tuple[str, ...],
    auth_url: str | None,
    *,
    encrypted: bool,
) -> dict[str, str]:
    """Annotations that put the gate before the server of `host`. A server that is asleep is woken by it.

    Traefik's `middlewares` hold the waking page, too; nginx answers 503 meanwhile. Raises `ValueError` when the gate is
    missing: a preview is never open to all.
    """
    if gateway == "traefik":
        return _traefik(middlewares, encrypted=encrypted)
    if not auth_url:
        raise ValueError("nginx needs the address where it asks who gets in: PREVIEW_AUTH_URL.")
    return {
        # Which preview it is about, the visitor doesn't say: nginx can be made to tell of another one.
        f"{_NGINX}/auth-url": f"{auth_url}{'&' if '?' in auth_url else '?'}{urlencode({'host': host})}",
        f"{_NGINX}/auth-response-headers": _PASSED_ON,
        f"{_NGINX}/auth-always-set-cookie": "true",
        f"{_NGINX}/proxy-body-size": "0",
        f"{_NGINX}/proxy-buffering": "off",
        f"{_NGINX}/proxy-request-buffering": "off",
        f"{_NGINX}/proxy-connect-timeout": "1",
        f"{_NGINX}/proxy-read-timeout": _NO_BOUND_S,
        f"{_NGINX}/proxy-send-timeout": _NO_BOUND_S,
    }


def _traefik(middlewares: tuple[str, ...], *, encrypted: bool) -> dict[str, str]:
    if not middlewares:
        raise ValueError("Traefik needs the middlewares that say who gets in: PREVIEW_MIDDLEWARES.")
    annotations = {f"{_TRAEFIK}/router.middlewares": ",".join(middlewares)}
    if encrypted:
        annotations[f"{_TRAEFIK}/router.tls"] = "true"
    return annotations

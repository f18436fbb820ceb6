"""How an ingress controller learns what stands before a preview: annotations on the project's Ingress."""

from typing import Literal

FALLBACK_SERVICE = "studio-preview-fallback"
"""Service in the projects' namespace that nginx shows where no server answers; `k8s/projects` makes it."""

_TRAEFIK = "traefik.ingress.kubernetes.io"
_NGINX = "nginx.ingress.kubernetes.io"

_PASSED_ON = "X-Preview-User,Cookie,Authorization,X-Preview-Token"
"""Taken from the gate's answer in place of the request's own; one that the answer lacks is taken out."""

_NO_BOUND_S = "86400"
"""nginx must have a bound: a stream or WebSocket that is silent for a day."""


def ingress_annotations(
    gateway: Literal["traefik", "nginx"], middlewares: tuple[str, ...], auth_url: str | None, *, encrypted: bool
) -> dict[str, str]:
    """Annotations that put the gate before the server, and the waking page where there is none.

    Traefik's `middlewares` hold both. Raises `ValueError` when the gate is missing: a preview is never open to all.
    """
    if gateway == "traefik":
        return _traefik(middlewares, encrypted=encrypted)
    if not auth_url:
        raise ValueError("nginx needs the address where it asks who gets in: PREVIEW_AUTH_URL.")
    return {
        f"{_NGINX}/auth-url": auth_url,
        f"{_NGINX}/auth-response-headers": _PASSED_ON,
        f"{_NGINX}/custom-http-errors": "502,504",
        f"{_NGINX}/default-backend": FALLBACK_SERVICE,
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

"""What Traefik and the API share. A module of its own: who only configures Traefik loads no database for it."""

from storage.secret_box import SecretBox


def gate_key(secrets: SecretBox) -> str:
    """What Traefik shows on the internal routes, so that nobody else can ask there. 64 hex digits."""
    return secrets.derive("preview-gate").hex()

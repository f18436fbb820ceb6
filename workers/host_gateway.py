"""Writes what Traefik starts from on one host: `python -m workers.host_gateway FOLDER ENGINE_SOCKET API_URL`.

For docker-compose.yml, in place of what `make up` writes for its own. `FOLDER` and `ENGINE_SOCKET` are as Traefik sees
them, too, `API_URL` is how it reaches the API. It serves previews and, under the host of `PUBLIC_URL`, the API: all on
`PREVIEW_PORT` of loopback.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from api.preview.gate_key import gate_key
from storage.secret_box import SecretBox
from workers.settings import ServiceSettings, load_service_settings
from workers.stack.traefik_config import dynamic_config, static_config


def configuration(
    settings: ServiceSettings, folder: Path, engine_socket: str, api_url: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The static part and the dynamic one."""
    key = gate_key(SecretBox(settings.secret_key.get_secret_value()))
    static = static_config(
        discovery="docker",
        listen=f"127.0.0.1:{settings.preview_port}",
        api_url=api_url,
        gate_key=key,
        instance=settings.instance,
        dynamic_file=folder / "dynamic.yml",
        docker_endpoint=f"unix://{engine_socket}",
    )
    dynamic = dynamic_config(preview_domain=settings.preview_domain, api_url=api_url, gate_key=key)
    dynamic["http"]["routers"]["api"] = {
        "rule": f"Host(`{urlsplit(settings.api_url).hostname}`)",
        "entryPoints": ["web"],
        "service": "preview-fallback",  # the API itself
    }
    return static, dynamic


def main(words: list[str]) -> None:
    """Write both files, readable by this user alone: the gate's key stands in them."""
    if len(words) != 3:  # noqa: PLR2004 -- as the docstring says
        sys.exit(__doc__)
    folder = Path(words[0])
    parts = configuration(load_service_settings(), folder, *words[1:])
    for name, config in zip(("static.yml", "dynamic.yml"), parts, strict=True):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])

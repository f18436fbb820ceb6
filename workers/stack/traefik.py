"""The files that Traefik starts from, written anew at each start."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from api.preview.gate_key import gate_key
from storage.secret_box import SecretBox
from workers.settings import DeploymentMode, Settings
from workers.stack.traefik_config import dynamic_config, static_config

_DISCOVERY: Final[Mapping[DeploymentMode, Literal["docker", "kubernetes", "http"]]] = {
    DeploymentMode.DOCKER: "docker",
    DeploymentMode.KUBERNETES: "kubernetes",
    DeploymentMode.LOCAL: "http",
}


def write_configuration(
    folder: Path,
    settings: Settings,
    *,
    mode: DeploymentMode,
    instance: str,
    secret_key: str,
    old_traefik: bool = False,
) -> Path:
    """Write them into `folder`; returns the path of the one that names the other. `old_traefik`: for 3.0."""
    folder.mkdir(parents=True, exist_ok=True)
    api_url = f"http://127.0.0.1:{settings.api_port}"
    key = gate_key(SecretBox(secret_key))
    dynamic = folder / "dynamic.yml"
    static = folder / "static.yml"
    _write(
        dynamic,
        dynamic_config(preview_domain=settings.preview_domain, api_url=api_url, gate_key=key, old_traefik=old_traefik),
    )
    _write(
        static,
        static_config(
            discovery=_DISCOVERY[mode],
            listen=f"127.0.0.1:{settings.preview_port}",
            api_url=api_url,
            gate_key=key,
            instance=instance,
            dynamic_file=dynamic,
            docker_endpoint=settings.docker_host,
            namespace=settings.kubernetes_namespace,
        ),
    )
    return static


def _write(path: Path, config: object) -> None:
    """Readable by its owner alone: the gate's key stands in it."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=2))

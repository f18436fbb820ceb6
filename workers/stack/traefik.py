"""The files that Traefik starts from, written anew at each start."""

import json
from pathlib import Path

from workers.settings import DeploymentMode, Settings


def write_configuration(folder: Path, settings: Settings, mode: DeploymentMode, instance: str) -> Path:
    """Write them into `folder`; the path of the one that names the others. JSON is YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "static.yaml"
    path.write_text(json.dumps({"entryPoints": {"web": {"address": f"127.0.0.1:{settings.preview_port}"}}}))
    return path

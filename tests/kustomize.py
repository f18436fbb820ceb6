"""Manifests as `kubectl apply -k` would send them: rendered, without a cluster."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECTS = ROOT / "k8s" / "projects"
KUBECTL = Path(sys.executable).with_name("kubectl")


def render(folder: Path) -> list[dict[str, Any]]:
    """All that the folder's kustomization makes. Fails with what kustomize says is wrong."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def render_projects(namespace: str, overlay: Path) -> list[dict[str, Any]]:
    """What projects stand on, in a namespace of another name; `overlay` is an empty folder for it."""
    resource = os.path.relpath(PROJECTS, overlay.resolve())
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": namespace, "resources": [resource]}))
    return render(overlay)

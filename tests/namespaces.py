"""A namespace of a cluster for one stack of the tests, with its files on this machine."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tests.cluster import ROOT, kubeconfig


@contextmanager
def own_namespace(data: Path) -> Iterator[dict[str, str]]:
    """Settings of a stack on folder `data` whose projects live in the cluster, all in a namespace that goes with it."""
    data.mkdir(parents=True, exist_ok=True)
    # A copy, so that the cluster is taken for somebody's own and lives on.
    copied = shutil.copy(kubeconfig(), data.parent / "kubeconfig")
    settings = {
        "DEPLOYMENT_MODE": "kubernetes",
        "KUBECONFIG": str(copied),
        "KUBERNETES_NAMESPACE": f"studio-test-{uuid4().hex[:8]}",
        "PROJECTS_ROOT": str(data / "projects"),
    }
    _cluster("up", settings)
    try:
        yield settings
    finally:
        _cluster("down", settings)


def _cluster(word: str, settings: dict[str, str]) -> None:
    done = subprocess.run(
        [ROOT / "k8s" / "cluster", word], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

"""The cluster that tests marked `kubernetes` run on: the one of KUBECONFIG, else the one that `make cluster` made."""

import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def kubeconfig() -> Path:
    """For tests that are marked: raises `LookupError` where there is no cluster."""
    asked = subprocess.run([ROOT / "k8s" / "cluster", "kubeconfig"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise LookupError(asked.stderr.strip())
    return Path(asked.stdout.strip())


def kubectl(*words: str, text: str | None = None, timeout_s: float = 60.0) -> str:
    """What it prints; `text` goes to its input. Raises `CalledProcessError` that has what it says is wrong."""
    done = subprocess.run(
        [Path(sys.executable).with_name("kubectl"), "--kubeconfig", str(kubeconfig()), *words],
        input=text, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, f"kubectl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@cache
def missing_cluster() -> str | None:
    try:
        kubectl("get", "--raw", "/readyz", timeout_s=10)
    except (LookupError, subprocess.SubprocessError) as error:
        return f"no cluster answers: {error}"
    return None

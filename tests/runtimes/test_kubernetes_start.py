"""Who lets a start wait, when nothing hinders it."""

from typing import Any

import pytest

from activities.runtimes.kubernetes_start import unbegun
from activities.runtimes.kubernetes_status import View
from tests.runtimes.test_kubernetes_status import DEPLOYMENT


@pytest.mark.parametrize(
    ("spec", "status", "words"),
    [
        (None, {}, "controllers"),
        ({}, {}, "scheduler"),
        ({"nodeName": "n"}, {}, "node n doesn't take up the dev server; its kubelet"),
        ({"nodeName": "n"}, {"startTime": "2026-01-01T00:00:00Z"}, "node n is slow to begin"),
    ],
)
def test_who_lets_a_start_wait_is_named(spec: dict[str, Any] | None, status: dict[str, Any], words: str) -> None:
    waiting = {"metadata": {"name": "p", "uid": "p", "creationTimestamp": ""}, "spec": spec, "status": status}
    obstacle = unbegun(View(DEPLOYMENT, () if spec is None else (waiting,)))
    assert obstacle.passes
    assert words in str(obstacle.fault)

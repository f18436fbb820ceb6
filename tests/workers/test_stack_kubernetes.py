"""`DEPLOYMENT_MODE=kubernetes make up` on a real cluster: API and worker here, dev servers and their previews there."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import ROOT, kubectl
from tests.e2e.studio import Project, Studio, until
from tests.namespaces import own_namespace
from tests.workers.stacks import RunningStack, running_stack, stack_environment
from workflows.contracts.names import ProjectRef, kubernetes_name

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

HTML = "text/html,application/xhtml+xml"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    data = tmp_path_factory.mktemp("kubernetes") / "data"
    with own_namespace(data) as cluster:
        yield stack_environment(data) | cluster


@pytest.fixture(scope="module")
def stack(environment: dict[str, str]) -> Iterator[RunningStack]:
    with running_stack(environment, 180) as running:
        yield running


@pytest.fixture
def project(stack: RunningStack, tmp_path: Path) -> Iterator[Project]:
    with closing(Studio(stack, "kubernetes", tmp_path)) as studio:
        yield studio.person("ann").start("static")


def found(stack: RunningStack, kind: str, project: Project) -> dict[str, Any] | None:
    """The project's object of this kind in the cluster, as somebody else sees it."""
    namespace = stack.environment["KUBERNETES_NAMESPACE"]
    shown = kubectl("-n", namespace, "get", kind, name_of(project), "--ignore-not-found", "-o", "json")
    return dict(json.loads(shown)) if shown else None


def name_of(project: Project) -> str:
    return kubernetes_name(ProjectRef(project.owner.id, project.id))


def test_a_project_is_seen_by_its_owner_sleeps_and_wakes(stack: RunningStack, project: Project) -> None:
    assert "kubernetes: DEPLOYMENT_MODE says so" in stack.output
    assert found(stack, "ingress", project) is not None

    # Its owner sees the app itself, nobody else anything.
    seen = project.visit()
    assert (seen.status_code, "Your site is live" in seen.text) == (200, True)
    assert project.knock().status_code == 401
    assert project.knock(X_Preview_Token="guessed").status_code == 401

    project.stop()
    deployment = found(stack, "deployment", project)
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 0

    # Whoever isn't its owner wakes nothing; a program is told; a browser gets a page, and the server starts.
    assert project.knock(Accept=HTML).status_code == 401
    token = project.preview_token()
    assert project.knock(X_Preview_Token=token).status_code == 503
    assert project.read()["dev_server"]["state"] == "stopped"
    page = project.knock(X_Preview_Token=token, Accept=HTML)
    assert (page.status_code, "Waking up" in page.text) == (503, True)
    until(lambda: project.read()["dev_server"]["state"] == "running", "awake", timeout_s=60)
    assert project.visit().text == seen.text

    assert project.call("DELETE", headers={"Prefer": "wait=60"}).is_success
    assert [found(stack, kind, project) for kind in ("deployment", "service", "ingress")] == [None] * 3


def test_a_server_that_ends_by_itself_gives_its_place_to_the_page(project: Project) -> None:
    assert project.visit().status_code == 200
    project.run("kill -9 $(pgrep -f '[v]ite')")
    until(lambda: project.read()["dev_server"]["state"] == "failed", "its failure", timeout_s=60)
    page = project.knock(X_Preview_Token=project.preview_token(), Accept=HTML)
    # An old Traefik doesn't rewrite the status of a pod that has parked.
    assert (page.status_code in {502, 503}, "exit code 137" in page.text) == (True, True), page.text
    project.start()
    assert project.visit().status_code == 200


def other_pods(stack: RunningStack, project: Project, known: set[str]) -> set[str]:
    """Of the project, those that run and stay, but for the known ones."""
    namespace, labels = stack.environment["KUBERNETES_NAMESPACE"], f"studio.project={project.id}"
    pods = json.loads(kubectl("-n", namespace, "get", "pods", "-l", labels, "-o", "json"))["items"]
    return {
        str(pod["metadata"]["name"])
        for pod in pods
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    } - known


def evict(stack: RunningStack, project: Project) -> None:
    """As a node that is emptied does it; the newer way is tried first."""
    [pod] = other_pods(stack, project, set())
    namespace = stack.environment["KUBERNETES_NAMESPACE"]
    for version in ("v1", "v1beta1"):
        asked = {"apiVersion": f"policy/{version}", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        with suppress(subprocess.CalledProcessError):
            kubectl("create", "--raw", path, "-f", "-", text=json.dumps(asked))
            return
    raise AssertionError(f"{pod} can't be evicted")


def test_what_others_do_to_its_objects_heals(stack: RunningStack, tmp_path: Path) -> None:
    namespace = ("-n", stack.environment["KUBERNETES_NAMESPACE"])
    with closing(Studio(stack, "kubernetes", tmp_path)) as studio:
        ann = studio.person("ann")
        evicted, edited, deleted = (ann.start("static") for _ in range(3))
        before = [
            (project, project.read()["dev_server"]["since"], other_pods(stack, project, set()))
            for project in (evicted, edited)
        ]
        evict(stack, evicted)
        kubectl(*namespace, "set", "env", f"deployment/{name_of(edited)}", "ADDED=by-hand")
        kubectl(*namespace, "delete", "deployment", name_of(deleted), "--wait=false")

        until(lambda: deleted.read()["dev_server"]["state"] == "failed", "its failure", timeout_s=60)
        assert deleted.read()["dev_server"]["reason"] == "Its container was removed from outside."
        deleted.start()
        assert deleted.visit().status_code == 200
        # Of these nothing is told: another pod takes the place of the first.
        for project, since, pods in before:
            until(partial(other_pods, stack, project, pods), "another pod", timeout_s=120)
            until(lambda p=project: p.visit().status_code == 200, "its answer")  # type: ignore[misc]  # of this round
            assert project.read()["dev_server"]["state"] == "running"
            assert project.read()["dev_server"]["since"] == since
        assert edited.run("echo $ADDED-")["stdout"] == "by-hand-\n"
        assert edited.command("restart")["state"] == "running"
        assert edited.run("echo $ADDED-")["stdout"] == "-\n"


def test_files_that_are_elsewhere_are_named(environment: dict[str, str], tmp_path: Path) -> None:
    elsewhere = stack_environment(tmp_path / "data") | {
        name: environment[name] for name in ("DEPLOYMENT_MODE", "KUBECONFIG", "KUBERNETES_NAMESPACE")
    }
    running = RunningStack(elsewhere)
    assert running.wait_end(60) == 1
    assert f"has its files in {environment['PROJECTS_ROOT']}, not in {tmp_path / 'data' / 'projects'}" in running.output


def test_a_cluster_is_made_ready_once_and_again(environment: dict[str, str]) -> None:
    for _ in range(2):
        done = subprocess.run(
            [ROOT / "k8s" / "cluster", "up"], env=os.environ | environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, f"export KUBECONFIG={environment['KUBECONFIG']}\n"), done.stderr


def test_a_stack_that_ends_leaves_no_server_running(stack: RunningStack, project: Project) -> None:
    """The last one here: it ends the stack of the others."""
    assert stack.stop() == 0
    assert "may still run" not in stack.output
    deployment = found(stack, "deployment", project)
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 0

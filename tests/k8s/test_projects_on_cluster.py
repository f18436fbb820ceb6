"""What projects stand on, in a real cluster: what the service's accounts may do, what is accepted, what refused."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from activities.ports import ResourceLimits
from activities.runtimes.kubernetes_spec import KubernetesContainerSettings, deployment, ingress, service
from tests.cluster import kubectl
from tests.kustomize import render_projects
from tests.runtimes.conftest import spec_of
from tests.runtimes.waiting import until
from workflows.contracts.names import ProjectRef, kubernetes_name

pytestmark = pytest.mark.kubernetes

WORKER = "system:serviceaccount:studio:studio-worker"
API = "system:serviceaccount:studio:studio-api"
NOBODY = "system:serviceaccount:studio:nobody"
LOOK = ("get", "list", "watch")
KEEP = (*LOOK, "create", "patch", "delete")
VISITS = {
    ("apps", "deployments"): set(LOOK),
    ("", "pods"): set(LOOK),
    ("", "pods/log"): {"get"},
    ("", "pods/exec"): {"create", "get"},
}
RUNS = VISITS | {
    ("apps", "deployments"): set(KEEP),
    ("", "services"): set(KEEP),
    ("networking.k8s.io", "ingresses"): set(KEEP),
    ("", "pods"): {*LOOK, "delete"},
    ("", "events"): {"list"},
}
ELSEWHERE = ("default", "kube-system", "studio")
LONGEST = ProjectRef(10**19 - 1, 10**19 - 1)
REF = ProjectRef(7, 12)
HOSTILE = "a\nb: $(HOME) $$ 'é' \"😀\"\u2028{{x}}"


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What projects stand on, in a namespace that goes with these tests."""
    name = f"studio-test-{uuid4().hex[:8]}"
    made = render_projects(name, tmp_path_factory.mktemp("overlay"))
    try:
        apply(*made)
        yield name
    finally:
        kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def apply(*manifests: dict[str, Any], account: str | None = None, dry: bool = False) -> list[dict[str, Any]]:
    """Server-side apply: what the API server made of it. Raises `CalledProcessError` when it refuses."""
    words = ["apply", "--server-side", "--field-manager=studio-test", "--force-conflicts", "-f", "-", "-o", "json"]
    words += [f"--as={account}"] if account else []
    words += ["--dry-run=server"] if dry else []
    told = json.loads(kubectl(*words, text=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})))
    items: list[dict[str, Any]] = told["items"] if told["kind"] == "List" else [told]
    return items


def rules(account: str, namespace: str) -> dict[tuple[str, str], set[str]]:
    """All that an account may do in a namespace, cluster-wide permissions included: (group, resource) → verbs."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    told = json.loads(kubectl("create", f"--as={account}", "-f", "-", "-o", "json", text=json.dumps(review)))
    assert told["status"]["incomplete"] is False
    found: dict[tuple[str, str], set[str]] = {}
    for rule in told["status"]["resourceRules"]:
        assert "resourceNames" not in rule
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def can(verb: str, resource: str, *where: str) -> str:
    """The answer of `kubectl auth can-i` for the worker: `yes` or `no`."""
    resource, _, part = resource.partition("/")
    words = ["auth", "can-i", verb, resource, f"--subresource={part}", *where, f"--as={WORKER}"]
    try:
        return kubectl(*words).strip()
    except subprocess.CalledProcessError:  # it ends with 1 for a no; what isn't an answer at all must not pass for one
        return "no" if kubectl("auth", "can-i", "get", "pods", "-n", "default").strip() == "yes" else "?"


def settings_for(namespace: str) -> KubernetesContainerSettings:
    return KubernetesContainerSettings(
        "test", namespace, "studio-devserver:latest", "localhost", "studio-projects", 1000, 1000
    )


def manifests_for(ref: ProjectRef, settings: KubernetesContainerSettings) -> list[dict[str, Any]]:
    spec = spec_of(ref, environment={"HOSTILE": HOSTILE}, limits=ResourceLimits(memory_mb=300, cpus=1.5))
    return [deployment(spec, settings), service(spec, settings), ingress(spec, settings)]


# --- who may do what ---


@pytest.mark.parametrize(("account", "expected"), [(WORKER, RUNS), (API, VISITS)])
def test_an_account_may_do_exactly_its_part(
    namespace: str, account: str, expected: dict[tuple[str, str], set[str]]
) -> None:
    everybodys = rules(NOBODY, namespace)
    assert rules(account, namespace) == everybodys | expected


@pytest.mark.parametrize("account", [WORKER, API])
@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_an_account_may_do_nothing_elsewhere(account: str, elsewhere: str) -> None:
    assert rules(account, elsewhere) == rules(NOBODY, elsewhere)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        *(("get", name) for name in ("secrets", "configmaps", "serviceaccounts", "persistentvolumeclaims", "roles")),
        *(("create", name) for name in ("pods", "pods/eviction", "pods/attach", "pods/portforward", "secrets", "jobs")),
        *(("create", name) for name in ("serviceaccounts/token", "roles", "rolebindings", "networkpolicies")),
        *(
            ("update", name)
            for name in ("deployments", "pods", "resourcequotas", "services", "pods/ephemeralcontainers")
        ),
        *(("delete", name) for name in ("networkpolicies", "resourcequotas", "limitranges", "namespaces")),
        ("patch", "pods"),
        ("deletecollection", "pods"),
        ("bind", "roles"),
        ("escalate", "roles"),
    ],
)
def test_what_would_lead_out_is_refused(namespace: str, verb: str, resource: str) -> None:
    assert can(verb, resource, "-n", namespace) == "no"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [("list", "nodes"), ("list", "namespaces"), ("impersonate", "users"), ("list", "pods"), ("get", "secrets")],
)
def test_the_cluster_as_a_whole_is_not_the_workers(verb: str, resource: str) -> None:
    assert can(verb, resource, "-A") == "no"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("patch", "deployments.apps"),
        ("create", "pods/exec"),
        ("get", "pods/log"),
        ("delete", "pods"),
        ("watch", "pods"),
    ],
)
def test_what_the_worker_needs_is_allowed(namespace: str, verb: str, resource: str) -> None:
    assert can(verb, resource, "-n", namespace) == "yes"


# --- what is accepted ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "gateway": "nginx",
            "ingress_class": "nginx",
            "auth_url": "http://api.studio.svc/internal/preview/nginx?key=k",
        },
        {"runtime_class": "gvisor", "node_selector": {"pool": "previews"}, "tls_secret": "wildcard"},
        {"instance": "i" * 40, "cert_issuer": "letsencrypt"},
    ],
)
@pytest.mark.parametrize("ref", [REF, LONGEST])
def test_the_worker_may_apply_a_project(namespace: str, ref: ProjectRef, changes: dict[str, Any]) -> None:
    made = manifests_for(ref, replace(settings_for(namespace), **changes))
    told = apply(*made, account=WORKER, dry=True)
    assert [one["metadata"]["name"] for one in told] == [kubernetes_name(ref)] * 3
    assert [one["metadata"]["labels"] for one in told] == [one["metadata"]["labels"] for one in made]
    container = told[0]["spec"]["template"]["spec"]["containers"][0]
    asked = made[0]["spec"]["template"]["spec"]["containers"][0]
    assert {part: container[part] for part in ("env", "command", "args", "securityContext", "volumeMounts")} == {
        part: asked[part] for part in ("env", "command", "args", "securityContext", "volumeMounts")
    }


def test_the_pod_is_admitted_without_a_token(namespace: str) -> None:
    template = manifests_for(REF, settings_for(namespace))[0]["spec"]["template"]
    metadata = {"name": "p", "namespace": namespace, "labels": template["metadata"]["labels"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    (admitted,) = apply(pod, dry=True)
    assert [volume["name"] for volume in admitted["spec"]["volumes"]] == ["files", "temporary", "home", "marks"]
    assert admitted["spec"]["containers"][0]["resources"] == template["spec"]["containers"][0]["resources"]
    template["spec"]["containers"][0]["resources"]["limits"]["memory"] = "64Gi"
    with pytest.raises(subprocess.CalledProcessError, match="maximum memory usage"):
        apply(pod, dry=True)


@pytest.mark.parametrize("account", [API, NOBODY])
def test_others_may_not_apply_a_project(namespace: str, account: str) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="forbidden"):
        apply(*manifests_for(REF, settings_for(namespace)), account=account, dry=True)


# --- a quota that is full ---


async def test_a_full_quota_refuses(namespace: str) -> None:
    first, second = (manifests_for(ProjectRef(7, project), settings_for(namespace))[0] for project in (1, 2))
    first["spec"]["replicas"] = 0
    await have_quota(namespace, {"count/deployments.apps": "1", "requests.memory": "100Mi"})
    apply(first, account=WORKER)

    async def refused() -> bool:
        try:
            apply(second, account=WORKER, dry=True)
        except subprocess.CalledProcessError as error:
            return "exceeded quota" in error.cmd
        return False

    await until(refused, within_s=30)
    first["spec"]["replicas"] = 1
    apply(first, account=WORKER)

    async def said() -> bool:
        name = first["metadata"]["name"]
        told = json.loads(kubectl("get", "deployment", name, "-n", namespace, "-o", "json", f"--as={WORKER}"))
        failures = [one for one in told["status"].get("conditions", []) if one["type"] == "ReplicaFailure"]
        return any("exceeded quota" in one["message"] for one in failures)

    await until(said, within_s=30)
    pods = kubectl("get", "pods", "-n", namespace, "-o", "name")
    assert pods == ""


async def have_quota(namespace: str, hard: dict[str, str]) -> None:
    """Give the namespace's quota these bounds, and wait until the API server counts by them."""
    patch = json.dumps({"spec": {"hard": hard}})
    kubectl("patch", "resourcequota", "projects", "-n", namespace, "--type=merge", "-p", patch)

    async def counts() -> bool:
        told = json.loads(kubectl("get", "resourcequota", "projects", "-n", namespace, "-o", "json"))
        counted: dict[str, str] = told.get("status", {}).get("hard", {})
        return hard.items() <= counted.items()

    await until(counts, within_s=30)

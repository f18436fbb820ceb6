"""The service's own manifests, read from each overlay as it would be applied: what pods have, and what fits what."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import kubernetes_validate
import pytest

from tests.kustomize import ROOT, render
from workers.api import _GRACE_S
from workers.gateway import manifests
from workers.settings import ServiceSettings, Settings
from workers.stack.traefik_config import dynamic_config
from workflows import policies
from workflows.contracts.names import TASK_QUEUE

OVERLAYS = {name: render(ROOT / "k8s" / "overlays" / name) for name in ("local", "production")}
SCHEMAS = ("1.30", kubernetes_validate.latest_version().rpartition(".")[0])
OURS = {"studio-api", "studio-worker", "studio-migrate", "studio-release"}
SECRET = {"SECRET_KEY", "DATABASE_URL"}
"""What README.md puts in the Secret; everything else that is required is in the ConfigMap."""

Manifest = dict[str, Any]
overlay = pytest.mark.parametrize("name", OVERLAYS)


def of(name: str, *kinds: str) -> list[Manifest]:
    found = [manifest for manifest in OVERLAYS[name] if manifest["kind"] in kinds]
    assert found, f"{name} has no {kinds}"
    return found


def one(name: str, kind: str, called: str) -> Manifest:
    (found,) = [each for each in of(name, kind) if each["metadata"]["name"] == called]
    return found


def workloads(name: str) -> list[Manifest]:
    return of(name, "Deployment", "StatefulSet", "Job")


def pods(name: str) -> Iterator[tuple[str, Manifest]]:
    for workload in workloads(name):
        yield workload["metadata"]["name"], workload["spec"]["template"]["spec"]


def containers(name: str) -> Iterator[tuple[str, Manifest]]:
    for called, pod in pods(name):
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            yield f"{called}/{container['name']}", container


def environment(container: Manifest) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}


def config(name: str) -> dict[str, str]:
    (found,) = of(name, "ConfigMap")
    data: dict[str, str] = found["data"]
    return data


@overlay
@pytest.mark.parametrize("version", SCHEMAS)
def test_the_schemas_accept_all_of_it(name: str, version: str) -> None:
    for manifest in OVERLAYS[name]:
        if manifest["kind"] != "ScaledObject":  # KEDA's own
            assert kubernetes_validate.validate(manifest, version, strict=True) == version


@overlay
def test_every_pod_is_restricted(name: str) -> None:
    for called, pod in pods(name):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, called
        assert security["runAsUser"] > 0, called
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, called
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), called
        assert {key for volume in pod.get("volumes", []) for key in volume} <= {
            "name", "emptyDir", "persistentVolumeClaim",
        }, called  # fmt: skip
    for called, container in containers(name):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, called
        assert security["readOnlyRootFilesystem"] is True, called
        assert security["capabilities"] == {"drop": ["ALL"]}, called
    (labels,) = (one(name, "Namespace", "studio")["metadata"]["labels"],)
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@overlay
def test_only_who_speaks_to_projects_has_a_token(name: str) -> None:
    holders = {called for called, pod in pods(name) if pod["automountServiceAccountToken"]}
    assert holders == {"studio-api", "studio-worker"}
    for called, pod in pods(name):
        assert pod.get("serviceAccountName") == (called if called in holders else None)
    assert not any(account.get("automountServiceAccountToken") for account in of(name, "ServiceAccount"))


@overlay
def test_every_container_has_bounds_and_every_server_its_probes(name: str) -> None:
    for called, container in containers(name):
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), called
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), called
    for workload in of(name, "Deployment", "StatefulSet"):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        assert {"readinessProbe", "livenessProbe"} <= container.keys(), container["name"]
    (api,) = one(name, "Deployment", "studio-api")["spec"]["template"]["spec"]["containers"]
    paths = {probe: api[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/healthz", "livenessProbe": "/healthz"}


@overlay
def test_selectors_find_their_pods_and_services_their_ports(name: str) -> None:
    labels = {}
    for workload in workloads(name):
        own = workload["spec"]["template"]["metadata"]["labels"]
        labels[workload["metadata"]["name"]] = own
        wanted = workload["spec"].get("selector", {}).get("matchLabels", {})
        assert wanted.items() <= own.items()
    selectors = [service["spec"]["selector"] for service in of(name, "Service")]
    budgets = [each for each in OVERLAYS[name] if each["kind"] == "PodDisruptionBudget"]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in budgets]
    for selector in selectors:
        assert len([own for own in labels.values() if selector.items() <= own.items()]) == 1, selector
    ports = {port["name"] for _, container in containers(name) for port in container.get("ports", [])}
    assert {port["targetPort"] for service in of(name, "Service") for port in service["spec"]["ports"]} <= ports
    targets = {
        each["spec"]["scaleTargetRef"]["name"] for each in OVERLAYS[name] if "scaleTargetRef" in each.get("spec", {})
    }
    assert targets <= labels.keys()


@overlay
def test_secrets_are_named_and_never_written(name: str) -> None:
    assert not [manifest for manifest in OVERLAYS[name] if manifest["kind"] == "Secret"]
    secrets = {key for key, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert {"secret_key", "database_url", "litellm_master_key", "openai_api_key"} <= secrets
    assert not {key.lower() for key in config(name)} & secrets
    for called, container in containers(name):
        for key, value in environment(container).items():
            hidden = key.lower() in secrets or "PASSWORD" in key
            assert not hidden or "secretKeyRef" in value, f"{called}: {key}"
    for called, pod in pods(name):
        for container in pod["containers"]:
            named = {next(iter(source.values()))["name"] for source in container.get("envFrom", [])}
            (generated,) = of(name, "ConfigMap")
            assert named in (set(), {"studio", generated["metadata"]["name"]}), called


@overlay
def test_whatever_is_set_is_a_setting_and_what_is_required_is_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {key.upper() for key in Settings.model_fields}
    assert set(config(name)) <= known
    for key in known:
        monkeypatch.delenv(key, raising=False)
    for key, value in config(name).items():
        monkeypatch.setenv(key, value)
    for key, value in dict.fromkeys(SECRET, "postgresql://" + "s" * 40).items():
        monkeypatch.setenv(key, value)
    if "LITELLM_API_BASE" in config(name):
        monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-key")
    for called in ("studio-api", "studio-worker"):
        (container,) = one(name, "Deployment", called)["spec"]["template"]["spec"]["containers"]
        assert set(environment(container)) <= known
        with monkeypatch.context() as patch:
            for key, value in environment(container).items():
                patch.setenv(key, value)
            settings = ServiceSettings(_env_file=None)
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert str(settings.projects_root) in mounts
        assert str(settings.ready_file or "/tmp/any").startswith("/tmp/")
        assert settings.worker_build_id in (None, container["image"].rpartition(":")[2])


@overlay
def test_files_are_written_by_the_user_that_projects_run_as(name: str) -> None:
    for called in ("studio-api", "studio-worker"):
        security = one(name, "Deployment", called)["spec"]["template"]["spec"]["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"]) == (1000, 1000)


@overlay
def test_an_end_has_the_time_that_it_takes(name: str) -> None:
    worker = one(name, "Deployment", "studio-worker")["spec"]["template"]["spec"]
    told = environment(worker["containers"][0])
    drain, grace = int(told["WORKER_DRAIN_S"]), int(told["WORKER_GRACE_S"])
    start = policies.StartBounds(start_timeout_s=600)
    classes: list[Any] = [start.launch(), start.probe()]
    classes += [each for each in vars(policies).values() if isinstance(each, dict) and "retry_policy" in each]
    silent = [each for each in classes if not each.get("heartbeat_timeout")]
    assert policies.ROW in silent
    assert grace > max(each["start_to_close_timeout"].total_seconds() for each in silent)
    assert worker["terminationGracePeriodSeconds"] >= drain + grace + 30
    release = one(name, "Job", "studio-release")["spec"]
    (container,) = release["template"]["spec"]["containers"]
    assert environment(container)["WORKER_DRAIN_S"] == told["WORKER_DRAIN_S"]
    assert environment(container)["WORKER_BUILD_ID"] == told["WORKER_BUILD_ID"]
    assert release["activeDeadlineSeconds"] > drain + 600
    api = one(name, "Deployment", "studio-api")["spec"]["template"]["spec"]
    (pause,) = [int(api["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])]
    assert api["terminationGracePeriodSeconds"] > pause + _GRACE_S + 10


def test_no_activity_has_time_limits_beside_those_that_an_end_is_measured_by() -> None:
    files = [path for path in (ROOT / "workflows").rglob("*.py") if path.name != "policies.py"]
    assert [str(path) for path in files if "to_close_timeout" in path.read_text()] == []


@overlay
def test_an_update_takes_no_pod_away_before_its_successor_is_there(name: str) -> None:
    for called in ("studio-api", "studio-worker"):
        strategy = one(name, "Deployment", called)["spec"]["strategy"]
        assert (strategy["type"], strategy["rollingUpdate"]["maxUnavailable"]) == ("RollingUpdate", 0)


def test_production_names_each_image_by_a_version_and_scales_by_itself() -> None:
    for called, container in containers("production"):
        tag = container["image"].rpartition(":")[2]
        assert container["image"].startswith("registry.example.com/"), called
        assert tag not in {"latest", "unset"}, called
    for called in ("studio-api", "studio-worker"):
        assert "replicas" not in one("production", "Deployment", called)["spec"]
        budget = one("production", "PodDisruptionBudget", called)["spec"]
        assert budget["maxUnavailable"] == 1
    assert one("production", "HorizontalPodAutoscaler", "studio-api")["spec"]["minReplicas"] >= 2


def test_keda_is_told_in_its_own_words() -> None:
    """Literally, since its schema isn't among those that manifests are checked by."""
    scaled = one("production", "ScaledObject", "studio-worker")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    backlog = {
        "endpoint": config("production")["TEMPORAL_ADDRESS"],
        "namespace": config("production")["TEMPORAL_NAMESPACE"],
        "taskQueue": TASK_QUEUE,
        "targetQueueSize": "20",
        "workerDeploymentName": config("production")["WORKER_DEPLOYMENT"],
        "workerDeploymentBuildId": "1.0.0",
    }
    slowly = {"stabilizationWindowSeconds": 1800, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 600}]}
    assert scaled["spec"] == {
        "scaleTargetRef": {"name": "studio-worker"},
        "minReplicaCount": 2,
        "maxReplicaCount": 20,
        "pollingInterval": 15,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": slowly}}},
        "triggers": [
            {"type": "temporal", "metadata": backlog | {"queueTypes": "activity"}},
            {"type": "temporal", "metadata": backlog | {"queueTypes": "workflow"}},
        ],
    }


def test_production_is_encrypted_from_outside() -> None:
    (ingress,) = of("production", "Ingress")
    host = ingress["spec"]["rules"][0]["host"]
    assert config("production")["PUBLIC_URL"] == f"https://{host}"
    assert ingress["spec"]["tls"][0]["hosts"] == [host]
    assert ingress["metadata"]["annotations"]["cert-manager.io/cluster-issuer"] == "letsencrypt"
    assert config("production")["PREVIEW_SCHEME"] == "https"


@overlay
def test_nobody_is_spoken_to_but_by_those_who_have_to(name: str) -> None:
    policies_of = {
        each["metadata"]["name"]: each["spec"]
        for each in of(name, "NetworkPolicy")
        if each["metadata"]["namespace"] == "studio"
    }
    denied = policies_of.pop("deny-all")
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies_of.values():
        assert spec["podSelector"]
        assert all(rule["from"] for rule in spec.get("ingress", []))
    (metadata,) = [
        block["except"]
        for rule in policies_of["egress"]["egress"]
        for block in [peer["ipBlock"] for peer in rule.get("to", [])]
    ]
    assert "169.254.0.0/16" in metadata
    speakers = policies_of["egress"]["podSelector"]["matchExpressions"][0]["values"]
    assert set(speakers) == OURS


def test_not_everybody_is_believed_about_a_clients_address() -> None:
    networks = [ip_network(word) for word in config("production")["TRUSTED_PROXIES"].split(",")]
    assert networks
    assert all(network.is_private and network.prefixlen >= 8 for network in networks)


@overlay
def test_a_gateways_middlewares_are_those_that_previews_name(name: str) -> None:
    made = manifests(dynamic_config(preview_domain="example.net", api_url="http://api", gate_key="k"), "studio")[
        "items"
    ]
    names = {f"studio-{each['metadata']['name']}@kubernetescrd" for each in made if each["kind"] == "Middleware"}
    assert set(config(name)["PREVIEW_MIDDLEWARES"].split(",")) <= names
    (route,) = [each for each in made if each["kind"] == "IngressRoute"]
    known = {each["metadata"]["name"] for each in made}
    services = {each["metadata"]["name"] for each in of(name, "Service")}
    (rule,) = route["spec"]["routes"]
    assert {each["name"] for each in rule["middlewares"]} <= known
    assert {each["name"] for each in rule["services"]} <= services
    assert len(made) == 5

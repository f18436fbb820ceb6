"""The manifests of a dev server: as asked for, as every schema has them, as Pod Security `restricted` demands."""

import dataclasses
import re
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.ports import DevServerSpec, ResourceLimits
from activities.runtimes.kubernetes_spec import (
    END_ANNOTATION,
    PARKING,
    KubernetesContainerSettings,
    deployment,
    identity_labels,
    ingress,
    selector,
    service,
)
from activities.runtimes.spec import LAUNCHER, launcher_arguments, spec_hash
from tests.runtimes.conftest import spec_of
from workflows.contracts.names import LABEL_BUILD, LABEL_SPEC, ProjectRef, container_name

SETTINGS = KubernetesContainerSettings("inst", "previews", "image:1", "preview.example.com", "files", 1000, 1001)
SPEC = DevServerSpec(
    ref=ProjectRef(7, 12),
    command="npm run dev",
    port=5173,
    install="npm ci",
    install_inputs=("package-lock.json",),
    environment={"TOKEN": "s3cret", "PORT": "1"},
    limits=ResourceLimits(memory_mb=512, cpus=1.5, pids=100, open_files=2048),
)
LONGEST = ProjectRef(10**19 - 1, 10**19 - 1)
NGINX = dataclasses.replace(
    SETTINGS, ingress_class="nginx", gateway="nginx", auth_url="http://api.studio.svc/internal/preview/nginx?key=k"
)
EVERYTHING = dataclasses.replace(
    SETTINGS, instance="i" * 40, runtime_class="gvisor", node_selector={"pool": "previews"}, cert_issuer="letsencrypt"
)
SCHEMAS = ("1.30", kubernetes_validate.latest_version().rpartition(".")[0])
IDENTITY = {"studio.instance": "inst", "studio.user": "7", "studio.project": "12"}


def manifests(spec: DevServerSpec, settings: KubernetesContainerSettings) -> list[dict[str, Any]]:
    return [deployment(spec, settings), service(spec, settings), ingress(spec, settings)]


def signed(metadata: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The metadata without its hashes, which must be there: half of each as a label, the whole as an annotation."""
    labels, annotations = dict(metadata["labels"]), dict(metadata["annotations"])
    for key in keys:
        whole = annotations.pop(key)
        assert re.fullmatch("[0-9a-f]{64}", whole)
        assert labels.pop(key) == whole[:32]
    return metadata | {"labels": labels, "annotations": annotations}


# --- as asked for ---


def test_the_server_is_asked_for_exactly_so() -> None:
    manifest = deployment(SPEC, SETTINGS)
    assert manifest["metadata"]["annotations"][LABEL_SPEC] == spec_hash(SPEC)
    template = manifest["spec"]["template"]
    assert template["metadata"]["annotations"] | {END_ANNOTATION: ""} == manifest["metadata"]["annotations"]
    manifest["metadata"] = signed(manifest["metadata"], LABEL_SPEC, LABEL_BUILD)
    template["metadata"] = signed(template["metadata"], LABEL_SPEC, LABEL_BUILD)
    assert manifest == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "dev-user7-project12",
            "namespace": "previews",
            "labels": IDENTITY,
            "annotations": {END_ANNOTATION: ""},
        },
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": IDENTITY},
            "template": {
                "metadata": {"labels": IDENTITY, "annotations": {}},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "restartPolicy": "Always",
                    "terminationGracePeriodSeconds": 5,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 1000,
                        "runAsGroup": 1001,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "server",
                            "image": "image:1",
                            "imagePullPolicy": "IfNotPresent",
                            "workingDir": "/workspace/app",
                            "command": ["sh", "-c", PARKING.replace("$", "$$"), "studio"],
                            "args": [
                                "/run/studio",
                                "2048",
                                LAUNCHER.replace("$", "$$"),
                                "studio",
                                "npm run dev",
                                "npm ci",
                                "package-lock.json",
                            ],
                            "env": [
                                {"name": "HOME", "value": "/home/dev"},
                                {"name": "HOST", "value": "0.0.0.0"},
                                {"name": "PIP_CACHE_DIR", "value": "/cache/pip"},
                                {"name": "PORT", "value": "5173"},
                                {"name": "STUDIO_PREVIEW_HOST", "value": "user7-project12.preview.example.com"},
                                {"name": "TOKEN", "value": "s3cret"},
                                {"name": "UV_CACHE_DIR", "value": "/cache/uv"},
                                {
                                    "name": "__VITE_ADDITIONAL_SERVER_ALLOWED_HOSTS",
                                    "value": "user7-project12.preview.example.com",
                                },
                                {"name": "npm_config_cache", "value": "/cache/npm"},
                                {"name": "npm_config_fund", "value": "false"},
                                {"name": "npm_config_update_notifier", "value": "false"},
                            ],
                            "ports": [{"name": "http", "containerPort": 5173, "protocol": "TCP"}],
                            "resources": {
                                "requests": {"memory": "512Mi", "cpu": "10m", "ephemeral-storage": "64Mi"},
                                "limits": {"memory": "512Mi", "cpu": "1500m", "ephemeral-storage": "512Mi"},
                            },
                            "terminationMessagePath": "/root/termination-message",
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "privileged": False,
                                "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"]},
                            },
                            "volumeMounts": [
                                {"name": "files", "mountPath": "/workspace/app", "subPath": "users/7/projects/12"},
                                {"name": "files", "mountPath": "/cache", "subPath": "users/7/cache"},
                                {"name": "temporary", "mountPath": "/tmp"},
                                {"name": "home", "mountPath": "/home/dev"},
                                {"name": "marks", "mountPath": "/run/studio"},
                            ],
                        }
                    ],
                    "volumes": [
                        {"name": "files", "persistentVolumeClaim": {"claimName": "files"}},
                        {"name": "temporary", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
                        {"name": "home", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
                        {"name": "marks", "emptyDir": {"sizeLimit": "1Mi"}},
                    ],
                },
            },
        },
    }


def test_the_pod_goes_where_the_settings_say() -> None:
    plain, placed = (deployment(SPEC, one)["spec"]["template"]["spec"] for one in (SETTINGS, EVERYTHING))
    assert placed == plain | {"runtimeClassName": "gvisor", "nodeSelector": {"pool": "previews"}}


def test_the_service_is_asked_for_exactly_so() -> None:
    manifest = service(SPEC, SETTINGS)
    manifest["metadata"] = signed(manifest["metadata"], LABEL_BUILD)
    assert manifest == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "dev-user7-project12", "namespace": "previews", "labels": IDENTITY, "annotations": {}},
        "spec": {
            "type": "ClusterIP",
            "selector": IDENTITY,
            "ports": [{"name": "http", "port": 80, "targetPort": 5173, "protocol": "TCP"}],
        },
    }


def test_the_preview_is_routed_exactly_so() -> None:
    manifest = ingress(SPEC, SETTINGS)
    manifest["metadata"] = signed(manifest["metadata"], LABEL_BUILD)
    assert manifest == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": "dev-user7-project12",
            "namespace": "previews",
            "labels": IDENTITY,
            "annotations": {
                "traefik.ingress.kubernetes.io/router.middlewares": "preview-auth@file,preview-errors@file"
            },
        },
        "spec": {
            "ingressClassName": "traefik",
            "rules": [
                {
                    "host": "user7-project12.preview.example.com",
                    "http": {
                        "paths": [
                            {
                                "path": "/",
                                "pathType": "Prefix",
                                "backend": {"service": {"name": "dev-user7-project12", "port": {"number": 80}}},
                            }
                        ]
                    },
                }
            ],
        },
    }


def test_nginx_asks_the_same_gate() -> None:
    manifest = ingress(SPEC, NGINX)
    assert manifest["spec"]["ingressClassName"] == "nginx"
    assert signed(manifest["metadata"], LABEL_BUILD)["annotations"] == {
        "nginx.ingress.kubernetes.io/auth-url": (
            "http://api.studio.svc/internal/preview/nginx?key=k&host=user7-project12.preview.example.com"
        ),
        "nginx.ingress.kubernetes.io/auth-response-headers": "X-Preview-User,Cookie,Authorization,X-Preview-Token",
        "nginx.ingress.kubernetes.io/auth-always-set-cookie": "true",
        "nginx.ingress.kubernetes.io/proxy-body-size": "0",
        "nginx.ingress.kubernetes.io/proxy-buffering": "off",
        "nginx.ingress.kubernetes.io/proxy-request-buffering": "off",
        "nginx.ingress.kubernetes.io/proxy-connect-timeout": "1",
        "nginx.ingress.kubernetes.io/proxy-read-timeout": "86400",
        "nginx.ingress.kubernetes.io/proxy-send-timeout": "86400",
    }


@pytest.mark.parametrize(
    "open_to_all", [{"middlewares": ()}, {"gateway": "nginx"}, {"gateway": "nginx", "auth_url": ""}]
)
def test_no_preview_is_made_without_its_gate(open_to_all: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="PREVIEW_"):
        ingress(SPEC, dataclasses.replace(SETTINGS, **open_to_all))


@pytest.mark.parametrize(
    ("settings", "secret", "issuer"),
    [
        ({"tls_secret": "wildcard"}, "wildcard", None),
        ({"cert_issuer": "letsencrypt"}, "dev-user7-project12-tls", "letsencrypt"),
        ({"tls_secret": "wildcard", "cert_issuer": "letsencrypt"}, "wildcard", None),
    ],
)
def test_a_preview_is_encrypted_by_the_installations_certificate_or_its_own(
    settings: dict[str, Any], secret: str, issuer: str | None
) -> None:
    manifest = ingress(SPEC, dataclasses.replace(SETTINGS, **settings))
    annotations = manifest["metadata"]["annotations"]
    assert manifest["spec"]["tls"] == [{"hosts": ["user7-project12.preview.example.com"], "secretName": secret}]
    assert annotations.get("cert-manager.io/cluster-issuer") == issuer
    assert annotations["traefik.ingress.kubernetes.io/router.tls"] == "true"
    assert annotations["traefik.ingress.kubernetes.io/router.middlewares"] == "preview-auth@file,preview-errors@file"


def test_what_changes_the_pod_changes_its_hashes_and_nothing_else_does() -> None:
    changes: list[dict[str, Any]] = [
        {"image": "image:2"},
        {"uid": 5},
        {"gid": 5},
        {"volume_claim": "other"},
        {"runtime_class": "kata"},
        {"node_selector": {"a": "b"}},
        {"temporary_mb": 1},
        {"home_mb": 1},
    ]
    builds = {
        deployment(SPEC, dataclasses.replace(SETTINGS, **change))["metadata"]["labels"][LABEL_BUILD]
        for change in [{}, *changes]
    }
    assert len(builds) == len(changes) + 1
    encrypted = dataclasses.replace(SETTINGS, tls_secret="wildcard")
    assert deployment(SPEC, encrypted) == deployment(SPEC, SETTINGS)
    assert ingress(SPEC, encrypted)["metadata"]["labels"] != ingress(SPEC, SETTINGS)["metadata"]["labels"]
    rotated = dataclasses.replace(SPEC, environment={"TOKEN": "other"})
    assert (
        deployment(rotated, SETTINGS)["metadata"]["labels"][LABEL_BUILD]
        == deployment(SPEC, SETTINGS)["metadata"]["labels"][LABEL_BUILD]
    )
    assert (
        deployment(rotated, SETTINGS)["metadata"]["labels"][LABEL_SPEC]
        != deployment(SPEC, SETTINGS)["metadata"]["labels"][LABEL_SPEC]
    )


def test_a_secret_stands_in_its_variable_alone() -> None:
    first, *others = manifests(SPEC, SETTINGS)
    environment = first["spec"]["template"]["spec"]["containers"][0].pop("env")
    assert {"name": "TOKEN", "value": "s3cret"} in environment
    assert "s3cret" not in str([first, *others])


# --- as every schema and grammar has it ---


@pytest.mark.parametrize("version", SCHEMAS)
@pytest.mark.parametrize("settings", [SETTINGS, NGINX, EVERYTHING])
def test_the_schemas_accept_all_of_it(version: str, settings: KubernetesContainerSettings) -> None:
    for manifest in manifests(SPEC, settings) + manifests(dataclasses.replace(SPEC, ref=LONGEST), settings):
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_the_check_refuses_what_the_schema_does_not_know() -> None:
    manifest = deployment(SPEC, SETTINGS)
    manifest["spec"]["template"]["spec"]["autoMountServiceAccountToken"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, SCHEMAS[0], strict=True)


_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_HOST = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_IDS = st.integers(1, 10**19 - 1)
_INSTANCES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


@given(user=_IDS, project=_IDS, instance=_INSTANCES)
def test_every_name_and_label_is_one_to_kubernetes(user: int, project: int, instance: str) -> None:
    ref = ProjectRef(user, project)
    spec = spec_of(ref)
    made = manifests(spec, dataclasses.replace(EVERYTHING, instance=instance))
    for metadata in [one["metadata"] for one in made] + [made[0]["spec"]["template"]["metadata"]]:
        assert "name" not in metadata or (_NAME.fullmatch(metadata["name"]) and len(metadata["name"]) <= 63)
        for key, value in metadata["labels"].items():
            assert _LABEL_KEY.fullmatch(key)
            assert _LABEL_VALUE.fullmatch(value)
            assert max(len(key), len(value)) <= 63
    rule = made[2]["spec"]["rules"][0]
    assert _HOST.fullmatch(rule["host"])
    assert rule["host"].startswith(container_name(ref))
    assert max(map(len, rule["host"].split("."))) <= 63
    assert len(made[2]["spec"]["tls"][0]["secretName"]) <= 63
    assert selector(instance, ref) == ",".join(
        f"{key}={value}" for key, value in identity_labels(instance, ref).items()
    )
    assert (
        made[0]["spec"]["selector"]["matchLabels"].items() <= made[0]["spec"]["template"]["metadata"]["labels"].items()
    )


# --- as the kubelet reads it ---


def kubelet_expands(text: str) -> str:
    """What the kubelet makes of an argument or value where no variable is known by name (`expansion.Expand`)."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda match: "$" if match[0] == "$$" else "EXPANDED", text)


@given(value=st.text(st.sampled_from("$()X \n'\"\\é\u2028😀")), command=st.text(st.sampled_from("$()A{} \n;")))
def test_values_and_commands_come_through_the_kubelet_unchanged(value: str, command: str) -> None:
    spec = dataclasses.replace(SPEC, environment={"HOSTILE": value}, command=command, install=f"x {command}")
    container = deployment(spec, SETTINGS)["spec"]["template"]["spec"]["containers"][0]
    environment = {one["name"]: kubelet_expands(one["value"]) for one in container["env"]}
    assert environment["HOSTILE"] == value
    seen = [kubelet_expands(part) for part in container["command"] + container["args"]]
    assert seen == ["sh", "-c", PARKING, "studio", "/run/studio", "2048", LAUNCHER, *launcher_arguments(spec)]


# --- as Pod Security `restricted` demands (kubernetes.io/docs/concepts/security/pod-security-standards) ---


@pytest.mark.parametrize("settings", [SETTINGS, EVERYTHING])
def test_the_pod_is_restricted(settings: KubernetesContainerSettings) -> None:
    pod = deployment(SPEC, settings)["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & pod.keys()
    assert pod["securityContext"].keys() == {"runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    permitted = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert all((volume.keys() - {"name"}) <= permitted for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context.keys() == {"allowPrivilegeEscalation", "privileged", "readOnlyRootFilesystem", "capabilities"}
        assert (context["allowPrivilegeEscalation"], context["privileged"]) == (False, False)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container["ports"])
    # Beyond `restricted`, and ours.
    assert pod["automountServiceAccountToken"] is False
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in pod["containers"])
    assert "serviceAccountName" not in pod

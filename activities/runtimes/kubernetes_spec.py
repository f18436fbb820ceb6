"""From a dev server's spec to the manifests that the cluster is asked for: pure, compared with literals in its test.

Deployment, Service and Ingress of a project have one name, `kubernetes_name(ref)`, so two installations that share a
cluster need a namespace each.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from activities.ports import DevServerSpec
from activities.runtimes.kubernetes_gateway import ingress_annotations
from activities.runtimes.spec import (
    CACHE_FOLDER,
    HOME_FOLDER,
    LAUNCHER,
    PROJECT_FOLDER,
    Surroundings,
    launcher_arguments,
    server_environment,
    spec_hash,
)
from workflows.contracts.names import (
    LABEL_BUILD,
    LABEL_INSTANCE,
    LABEL_PROJECT,
    LABEL_SPEC,
    LABEL_USER,
    ProjectRef,
    kubernetes_name,
    preview_host,
    project_subpath,
    user_subpath,
)

CONTAINER_NAME = "server"
"""The one container of a project's pod."""

END_ANNOTATION = "studio.end"
"""On a Deployment: how its server ended, as the kubelet told it, in JSON; empty from its start on."""

POD_GRACE_S = 5
"""How long a server may take to end, once it is told to."""

MARK_FOLDER = "/run/studio"
"""Where the container remembers that its server ran: on disk, for the pod's life, a node's restart included."""

PARKING = r"""
marks=$1; files=$2; launcher=$3; shift 3
if [ -e "$marks/started" ]; then
  tail -f /dev/null & trap 'kill $!; exit 0' TERM
  wait; exit 0
fi
mkdir "$marks/started" || exit 125
ulimit -n "$files" 2>/dev/null || :
child=
trap '[ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM
sh -c "$launcher" "$@" & child=$!
while :; do
  wait "$child"; code=$?
  kill -0 "$child" 2>/dev/null || exit "$code"
done
"""
"""Run by `sh` as the container's first process, with `marks files launcher` and what the launcher is given.

A Deployment's pods are always restarted by the kubelet; a dev server must not be: its owner is told the exit code and
the last lines, and an install isn't run twice. So the first run leaves a mark, and one that finds it parks: the pod
stays, with its previous log and `lastState`, until a worker has read them. As the first process it hands TERM on and
reaps orphans, so that the image needs no init; the exit code is the server's own, 128 + n after signal n. `files`
bounds open files where the node allows that many. A server starts with SIGINT ignored, as any background process of a
shell.
"""

_CPU_REQUEST = 0.01
"""Cores that a server is sure of. Idle ones need next to nothing, and a node of two is to hold a hundred."""

_DISK_REQUEST, _DISK_LIMIT = "64Mi", "512Mi"
"""Of the node's own disk: the log (the kubelet rotates it) and the mark; all else is memory or the volume."""

_MARK_SIZE = "1Mi"

_TERMINATION_MESSAGE = "/root/termination-message"
"""The kubelet mounts a file of the node's disk here that anybody may write and that no limit counts. In root's own
folder the server's user doesn't reach it.
"""


@dataclass(frozen=True)
class KubernetesContainerSettings:
    """What all dev servers of this installation share.

    `volume_claim` holds the tree of `PROJECTS_ROOT`; `uid` owns its files and runs the servers. `gateway`: whose
    annotations the Ingress carries; `middlewares` are Traefik's, first one outermost; `auth_url`: where nginx asks.
    `tls_secret`: a certificate for all previews, in the projects' namespace; without it `cert_issuer`, a cluster issuer
    of cert-manager, makes one for each. Neither: plain HTTP, or a certificate that the controller itself brings.
    """

    instance: str
    namespace: str
    image: str
    preview_domain: str
    volume_claim: str
    uid: int
    gid: int
    ingress_class: str = "traefik"
    gateway: Literal["traefik", "nginx"] = "traefik"
    middlewares: tuple[str, ...] = ("preview-auth@file", "preview-errors@file")
    auth_url: str | None = None
    tls_secret: str | None = None
    cert_issuer: str | None = None
    runtime_class: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    temporary_mb: int = 256
    home_mb: int = 256


def identity_labels(instance: str, ref: ProjectRef) -> dict[str, str]:
    """By these a project's objects are found again."""
    return {
        LABEL_INSTANCE: instance,
        LABEL_USER: str(ref.user_id),
        LABEL_PROJECT: str(ref.project_id),
    }


def selector(instance: str, ref: ProjectRef | None = None) -> str:
    """Label selector of the project's objects, or of all that are this installation's."""
    labels = {LABEL_INSTANCE: instance} if ref is None else identity_labels(instance, ref)
    return ",".join(f"{key}={value}" for key, value in labels.items())


def deployment(spec: DevServerSpec, settings: KubernetesContainerSettings) -> dict[str, Any]:
    """The server itself: one pod, replaced rather than rolled. The owner's variables stand in `env` and nowhere else.

    Labels `LABEL_SPEC` and `LABEL_BUILD` hold 32 hex digits of each hash, annotations of the same keys the whole.
    """
    labels = identity_labels(settings.instance, spec.ref)
    manifest = _manifest("apps/v1", "Deployment", spec.ref, settings)
    manifest["spec"] = {
        "replicas": 1,
        "revisionHistoryLimit": 0,
        "progressDeadlineSeconds": 600,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": dict(labels)},
        "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(spec, settings)},
    }
    _sign(manifest, manifest["spec"]["template"], spec=spec_hash(spec), build=_hash(manifest))
    manifest["metadata"]["annotations"][END_ANNOTATION] = ""
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [
        {"name": name, "value": _literal(value)} for name, value in sorted(_environment(spec, settings).items())
    ]
    return manifest


def service(spec: DevServerSpec, settings: KubernetesContainerSettings) -> dict[str, Any]:
    """Where the ingress controller finds the server: port 80 of the cluster's own network."""
    manifest = _manifest("v1", "Service", spec.ref, settings)
    manifest["spec"] = {
        "type": "ClusterIP",
        "selector": identity_labels(settings.instance, spec.ref),
        "ports": [{"name": "http", "port": 80, "targetPort": spec.port, "protocol": "TCP"}],
    }
    _sign(manifest, build=_hash(manifest))
    return manifest


def ingress(spec: DevServerSpec, settings: KubernetesContainerSettings) -> dict[str, Any]:
    """The preview's host, behind the gate that lets nobody but the owner in."""
    name = kubernetes_name(spec.ref)
    host = preview_host(spec.ref, settings.preview_domain).lower()
    secret = settings.tls_secret or (f"{name}-tls" if settings.cert_issuer else None)
    annotations = ingress_annotations(
        settings.gateway, host, settings.middlewares, settings.auth_url, encrypted=secret is not None
    )
    if settings.cert_issuer and not settings.tls_secret:
        annotations["cert-manager.io/cluster-issuer"] = settings.cert_issuer
    manifest = _manifest("networking.k8s.io/v1", "Ingress", spec.ref, settings)
    manifest["metadata"]["annotations"] = annotations
    backend = {"service": {"name": name, "port": {"number": 80}}}
    manifest["spec"] = {
        "ingressClassName": settings.ingress_class,
        "rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
    }
    if secret is not None:
        manifest["spec"]["tls"] = [{"hosts": [host], "secretName": secret}]
    _sign(manifest, build=_hash(manifest))
    return manifest


def _manifest(version: str, kind: str, ref: ProjectRef, settings: KubernetesContainerSettings) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": kubernetes_name(ref),
            "namespace": settings.namespace,
            "labels": identity_labels(settings.instance, ref),
        },
    }


def _sign(*parts: dict[str, Any], build: str, spec: str | None = None) -> None:
    """Write the hashes on each part's metadata."""
    hashes = {LABEL_BUILD: build} | ({LABEL_SPEC: spec} if spec else {})
    for part in parts:
        metadata = part["metadata"]
        metadata["labels"] |= {key: value[:32] for key, value in hashes.items()}
        metadata["annotations"] = metadata.get("annotations", {}) | hashes


def _hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _pod(spec: DevServerSpec, settings: KubernetesContainerSettings) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": POD_GRACE_S,
        # No fsGroup: the kubelet would change the owner of every file of the volume, at every start.
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.uid,
            "runAsGroup": settings.gid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, settings)],
        "volumes": [
            {"name": "files", "persistentVolumeClaim": {"claimName": settings.volume_claim}},
            {"name": "temporary", "emptyDir": {"medium": "Memory", "sizeLimit": f"{settings.temporary_mb}Mi"}},
            {"name": "home", "emptyDir": {"medium": "Memory", "sizeLimit": f"{settings.home_mb}Mi"}},
            {"name": "marks", "emptyDir": {"sizeLimit": _MARK_SIZE}},
        ],
    }
    if settings.runtime_class:
        pod["runtimeClassName"] = settings.runtime_class
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    return pod


def _container(spec: DevServerSpec, settings: KubernetesContainerSettings) -> dict[str, Any]:
    arguments = [MARK_FOLDER, str(spec.limits.open_files), LAUNCHER, *launcher_arguments(spec)]
    cache = f"{user_subpath(spec.ref.user_id)}/cache"
    return {
        "name": CONTAINER_NAME,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "workingDir": PROJECT_FOLDER,
        "command": ["sh", "-c", _literal(PARKING), "studio"],
        "args": [_literal(argument) for argument in arguments],
        "ports": [{"name": "http", "containerPort": spec.port, "protocol": "TCP"}],
        "resources": _resources(spec),
        "terminationMessagePath": _TERMINATION_MESSAGE,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "files", "mountPath": PROJECT_FOLDER, "subPath": str(project_subpath(spec.ref))},
            {"name": "files", "mountPath": CACHE_FOLDER, "subPath": cache},
            {"name": "temporary", "mountPath": "/tmp"},  # noqa: S108 -- the container's
            {"name": "home", "mountPath": HOME_FOLDER},
            {"name": "marks", "mountPath": MARK_FOLDER},
        ],
    }


def _resources(spec: DevServerSpec) -> dict[str, Any]:
    """Memory is promised whole, so that a node that is full says so instead of killing. No field bounds processes:
    the kubelet's `podPidsLimit` does.
    """
    memory = f"{spec.limits.memory_mb}Mi"
    cpus = spec.limits.cpus
    return {
        "requests": {"memory": memory, "cpu": _millicores(min(cpus, _CPU_REQUEST)), "ephemeral-storage": _DISK_REQUEST},
        "limits": {"memory": memory, "cpu": _millicores(cpus), "ephemeral-storage": _DISK_LIMIT},
    }


def _millicores(cpus: float) -> str:
    return f"{round(cpus * 1000)}m"


def _environment(spec: DevServerSpec, settings: KubernetesContainerSettings) -> dict[str, str]:
    around = Surroundings("0.0.0.0", spec.port, settings.preview_domain, HOME_FOLDER, CACHE_FOLDER)
    return server_environment(spec, around)


def _literal(text: str) -> str:
    """`text` so that the kubelet, which reads `$(NAME)` and `$$` in arguments and variables, gives it back as it is."""
    return text.replace("$", "$$")

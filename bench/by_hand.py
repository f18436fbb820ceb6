"""A project's objects in the cluster as the service's own builders make them, for who applies them without it."""

import json
from typing import Any

import psutil

from activities.files.start_detection import detect
from activities.files.store import DiskFileStore
from activities.ports import DevServerSpec
from activities.runtimes.kubernetes_client import Cluster, Kind
from activities.runtimes.kubernetes_spec import KubernetesContainerSettings, deployment, ingress, service
from tests.cluster import kubectl
from tests.workers.stacks import RunningStack
from workers.settings import ServiceSettings
from workers.wiring import CONTAINER_OWNER, dev_server_limits
from workflows.contracts.names import LABEL_BUILD, LABEL_SPEC, ProjectRef, kubernetes_name

Manifests = list[tuple[Kind, dict[str, Any]]]


class ByHand:
    """Has the settings of a stack's worker. The service takes what is applied here for stopped, for a minute."""

    def __init__(self, stack: RunningStack) -> None:
        told = psutil.Process(stack.pid("worker")).environ()
        names = (name for name in ServiceSettings.model_fields if name.upper() in told)
        self._settings = ServiceSettings.model_validate({name: told[name.upper()] for name in names})
        self._files = DiskFileStore(self._settings.files_root, CONTAINER_OWNER)
        self.namespace = self._settings.kubernetes_namespace
        uid, gid = CONTAINER_OWNER
        self._containers = KubernetesContainerSettings(
            instance=self._settings.instance,
            namespace=self.namespace,
            image=self._settings.devserver_image,
            preview_domain=self._settings.preview_domain,
            volume_claim=self._settings.kubernetes_volume_claim,
            uid=uid,
            gid=gid,
            ingress_class=self._settings.ingress_class,
            middlewares=self._settings.preview_middlewares,
        )

    def cluster(self) -> Cluster:
        """The driver's own connection; to be closed."""
        return Cluster(self._settings.kubeconfig, self.namespace)

    async def manifests(self, ref: ProjectRef) -> Manifests:
        """Service, Ingress and Deployment of a project whose folder is there."""
        plan = await detect(self._files, ref)
        spec = DevServerSpec(
            ref=ref,
            command=plan.command,
            port=plan.port,
            install=plan.install,
            install_inputs=plan.install_inputs,
            limits=dev_server_limits(self._settings),
        )
        return [
            (Kind.SERVICE, service(spec, self._containers)),
            (Kind.INGRESS, ingress(spec, self._containers)),
            (Kind.DEPLOYMENT, deployment(spec, self._containers)),
        ]

    async def check(self, ref: ProjectRef) -> None:
        """Raise unless the project's Deployment, which the service has applied, is the one of `manifests`."""
        name = kubernetes_name(ref)
        found = json.loads(kubectl("-n", self.namespace, "get", "deployment", name, "-o", "json"))
        made = next(manifest for kind, manifest in await self.manifests(ref) if kind is Kind.DEPLOYMENT)
        for key in (LABEL_SPEC, LABEL_BUILD):
            if found["metadata"]["annotations"][key] != made["metadata"]["annotations"][key]:
                raise ValueError("the service applies other manifests than these")


def apply_by_kubectl(*manifests: dict[str, Any]) -> None:
    """`kubectl apply` of all of them in one go."""
    kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}))

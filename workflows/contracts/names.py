"""Every name that two parts must spell alike: containers, hosts, folders, labels, workflow ids.

Nothing else in the project builds one of these strings, so a container has one name and a label one key.
"""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

TASK_QUEUE = "studio"
"""The one Temporal task queue that API and workers share."""

LABEL_INSTANCE = "studio.instance"
LABEL_USER = "studio.user"
LABEL_PROJECT = "studio.project"
LABEL_SPEC = "studio.spec"
"""Hash of the DevServerSpec that the container was made from: another hash means another container."""
LABEL_BUILD = "studio.build"
"""Hash of the rest of the container's settings (image, limits, mounts): another one means another container too."""

STUDIO_DIRECTORY = ".studio"
"""The service's own folder at a project's root: command ledger, install marker. Hidden from file listings."""

PREVIEW_COOKIE = "studio_preview"
"""Host-only cookie of a preview host. `PREVIEW_FRAME_COOKIE` is its twin for cross-site frames."""
PREVIEW_FRAME_COOKIE = "studio_preview_frame"

_PREVIEW_LABEL = re.compile(r"user([1-9][0-9]{0,18})-project([1-9][0-9]{0,18})")
_KUBERNETES_NAME_LIMIT = 63


class ProjectRef(NamedTuple):
    """Whose project: the pair from which all names of its parts follow."""

    user_id: int
    project_id: int


def container_name(ref: ProjectRef) -> str:
    """Docker container of the project's dev server, e.g. `user7-project12`."""
    return f"user{ref.user_id}-project{ref.project_id}"


def kubernetes_name(ref: ProjectRef) -> str:
    """Deployment, Service and Ingress of the project, e.g. `dev-user7-project12`; at most 63 characters."""
    name = f"dev-user{ref.user_id}-project{ref.project_id}"
    if len(name) > _KUBERNETES_NAME_LIMIT:
        raise ValueError(f"{name} is longer than {_KUBERNETES_NAME_LIMIT} characters")
    return name


def preview_host(ref: ProjectRef, preview_domain: str) -> str:
    """Host name of the project's preview, e.g. `user7-project12.localhost`, without a port."""
    return f"user{ref.user_id}-project{ref.project_id}.{preview_domain}"


def preview_url(ref: ProjectRef, scheme: str, preview_domain: str, port: int | None) -> str:
    """Address of the project's preview, e.g. `http://user1-project2.localhost:8080`. `port` None: the scheme's own."""
    return f"{scheme}://{preview_host(ref, preview_domain)}{'' if port is None else f':{port}'}"


def parse_preview_host(host: str, preview_domain: str) -> ProjectRef | None:
    """The project behind a `Host` header (a port is ignored), or None when it isn't a preview host."""
    name = host.rsplit(":", 1)[0].lower()
    label, dot, domain = name.partition(".")
    match = _PREVIEW_LABEL.fullmatch(label)
    if match is None or not dot or domain != preview_domain.lower():
        return None
    return ProjectRef(int(match[1]), int(match[2]))


def user_subpath(user_id: int) -> PurePosixPath:
    """Folder of all of a user's files below `PROJECTS_ROOT`."""
    return PurePosixPath("users") / str(user_id)


def project_subpath(ref: ProjectRef) -> PurePosixPath:
    """Folder of the project's files below `PROJECTS_ROOT`; `subPath` of the shared volume in Kubernetes."""
    return user_subpath(ref.user_id) / "projects" / str(ref.project_id)


def model_key_alias(instance: str, user_id: int) -> str:
    """Alias of the user's virtual key at the model proxy; `instance` keeps apart installations that share one."""
    return f"studio-{instance}-user-{user_id}"


def provision_project_id(project_id: int) -> str:
    """Workflow id of the project's `ProvisionProject`."""
    return f"provision-project-{project_id}"


def dev_server_id(project_id: int) -> str:
    """Workflow id of the project's `DevServer`."""
    return f"dev-server-{project_id}"


def delete_project_id(project_id: int) -> str:
    """Workflow id of the project's `DeleteProject`."""
    return f"delete-project-{project_id}"


def agent_task_id(task_id: str) -> str:
    """Workflow id of the `AgentTask`."""
    return f"agent-task-{task_id}"


def onboard_user_id(user_id: int) -> str:
    """Workflow id of the user's `OnboardUser`."""
    return f"onboard-user-{user_id}"


def offboard_user_id(user_id: int) -> str:
    """Workflow id of the user's `OffboardUser`."""
    return f"offboard-user-{user_id}"


RECONCILE_ID = "reconcile"
"""Id of the Temporal Schedule and, as a prefix, of the `Reconcile` runs that it starts."""

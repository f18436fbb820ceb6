"""From a dev server's spec to the container that Docker is asked for: pure, compared with literals in its test."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from activities.ports import DevServerSpec
from activities.runtimes.preview_labels import preview_labels
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
    project_subpath,
    user_subpath,
)

_MIB = 1024 * 1024


@dataclass(frozen=True)
class DockerContainerSettings:
    """What all containers of this installation share.

    `projects_root` as the engine's host sees it; `uid` owns the projects' files and runs the servers.
    """

    instance: str
    image: str
    projects_root: str
    preview_domain: str
    uid: int
    gid: int
    temporary_mb: int = 256
    home_mb: int = 256


def network_name(instance: str, user_id: int) -> str:
    """The bridge that a user's containers have to themselves."""
    return f"studio-{instance}-user{user_id}"


def identity_labels(instance: str, ref: ProjectRef) -> dict[str, str]:
    """By these a container is found again."""
    return {
        LABEL_INSTANCE: instance,
        LABEL_USER: str(ref.user_id),
        LABEL_PROJECT: str(ref.project_id),
    }


def container_config(spec: DevServerSpec, settings: DockerContainerSettings) -> dict[str, Any]:
    """Body of the engine's `containers/create`. The owner's variables stand in `Env` and nowhere else."""
    network = network_name(settings.instance, spec.ref.user_id)
    environment = server_environment(
        spec, Surroundings("0.0.0.0", spec.port, settings.preview_domain, HOME_FOLDER, CACHE_FOLDER)
    )
    config: dict[str, Any] = {
        "Image": settings.image,
        "User": f"{settings.uid}:{settings.gid}",
        "WorkingDir": PROJECT_FOLDER,
        "Entrypoint": ["sh", "-c", LAUNCHER],
        "Cmd": launcher_arguments(spec),
        "Labels": identity_labels(settings.instance, spec.ref)
        | preview_labels(spec.ref, spec.port, settings.preview_domain, network),
        "HostConfig": _host_config(spec, settings, network),
    }
    build = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    config["Labels"] |= {LABEL_SPEC: spec_hash(spec), LABEL_BUILD: build[:32]}
    config["Env"] = [f"{name}={value}" for name, value in sorted(environment.items())]
    return config


def _host_config(spec: DevServerSpec, settings: DockerContainerSettings, network: str) -> dict[str, Any]:
    memory = spec.limits.memory_mb * _MIB
    owner = f"uid={settings.uid},gid={settings.gid}"
    return {
        "NetworkMode": network,
        "Mounts": [
            _bind(f"{settings.projects_root}/{project_subpath(spec.ref)}", PROJECT_FOLDER),
            _bind(f"{settings.projects_root}/{user_subpath(spec.ref.user_id)}/cache", CACHE_FOLDER),
        ],
        "Tmpfs": {
            "/tmp": f"rw,exec,nosuid,nodev,size={settings.temporary_mb}m,mode=1777",  # noqa: S108 -- the container's
            HOME_FOLDER: f"rw,exec,nosuid,nodev,size={settings.home_mb}m,mode=0700,{owner}",
        },
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "Init": True,
        "IpcMode": "private",
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(spec.limits.cpus * 1_000_000_000),
        "PidsLimit": spec.limits.pids,
        "Ulimits": [{"Name": "nofile", "Soft": spec.limits.open_files, "Hard": spec.limits.open_files}],
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
    }


def _bind(source: str, target: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "BindOptions": {"Propagation": "rprivate"}}

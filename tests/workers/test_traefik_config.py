"""Traefik's configuration, against what it must say; tests/preview runs it."""

from pathlib import Path
from typing import Any

from workers.stack.traefik_config import dynamic_config, static_config
from workflows.contracts.names import LABEL_INSTANCE


def test_the_static_configuration_by_labels() -> None:
    config = static_config(
        discovery="docker",
        listen="127.0.0.1:8080",
        api_url="http://127.0.0.1:8000",
        gate_key="key",
        instance="studio",
        dynamic_file=Path("/data/dynamic.yml"),
        docker_endpoint="tcp://engine:2375",
    )
    assert config["providers"] == {
        "providersThrottleDuration": "10ms",
        "file": {"filename": "/data/dynamic.yml", "watch": True},
        "docker": {
            "exposedByDefault": False,
            "constraints": f"Label(`{LABEL_INSTANCE}`, `studio`)",
            "endpoint": "tcp://engine:2375",
        },
    }
    assert config["global"] == {"checkNewVersion": False, "sendAnonymousUsage": False}
    web = config["entryPoints"]["web"]
    assert web["address"] == "127.0.0.1:8080"
    # Bounds on a whole request would cut streams.
    assert web["transport"]["respondingTimeouts"] == {"readTimeout": "0s", "writeTimeout": "0s", "idleTimeout": "180s"}
    assert config["serversTransport"]["forwardingTimeouts"]["dialTimeout"] == "1s"
    assert not {"api", "accessLog", "metrics", "ping"} & set(config)


def test_the_static_configuration_for_processes_polls_the_api() -> None:
    config = static_config(
        discovery="http",
        listen="127.0.0.1:8080",
        api_url="http://127.0.0.1:8000",
        gate_key="key",
        instance="studio",
        dynamic_file=Path("/data/dynamic.yml"),
    )
    assert config["providers"]["http"]["endpoint"] == "http://127.0.0.1:8000/internal/traefik/config?key=key"
    assert "docker" not in config["providers"]


def test_the_static_configuration_of_a_cluster_sees_one_installation_in_one_namespace() -> None:
    config = static_config(
        discovery="kubernetes",
        listen="127.0.0.1:8080",
        api_url="http://127.0.0.1:8000",
        gate_key="key",
        instance="studio",
        dynamic_file=Path("/data/dynamic.yml"),
        namespace="studio-projects",
    )
    assert config["providers"]["kubernetesIngress"] == {
        "namespaces": ["studio-projects"],
        "labelSelector": f"{LABEL_INSTANCE}=studio",
    }
    assert not {"docker", "http"} & set(config["providers"])


def test_an_old_traefik_is_told_nothing_that_it_does_not_know() -> None:
    def middlewares(*, old: bool) -> dict[str, Any]:
        config = dynamic_config(
            preview_domain="localhost", api_url="http://127.0.0.1:8000", gate_key="key", old_traefik=old
        )
        made: dict[str, Any] = config["http"]["middlewares"]
        return made

    old, new = middlewares(old=True), middlewares(old=False)
    assert set(new["preview-auth"]["forwardAuth"]) - set(old["preview-auth"]["forwardAuth"]) == {
        "preserveLocationHeader",
        "maxResponseBodySize",
    }
    assert set(new["preview-errors"]["errors"]) - set(old["preview-errors"]["errors"]) == {"statusRewrites"}


def test_the_dynamic_configuration_asks_before_every_request() -> None:
    http = dynamic_config(preview_domain="preview.example.com", api_url="http://127.0.0.1:8000", gate_key="key")["http"]
    auth = http["middlewares"]["preview-auth"]["forwardAuth"]
    assert auth["address"] == "http://127.0.0.1:8000/internal/preview/auth?key=key"
    assert auth["trustForwardHeader"] is False
    assert auth["preserveLocationHeader"] is True
    assert auth["authResponseHeaders"] == ["X-Preview-User", "Cookie", "Authorization", "X-Preview-Token"]
    fallback = http["routers"]["preview-fallback"]
    assert fallback["priority"] == 1
    assert fallback["middlewares"][0] == "preview-auth"
    assert r"\.preview\.example\.com$" in fallback["rule"]

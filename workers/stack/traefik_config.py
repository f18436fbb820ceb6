"""Traefik's configuration, as pure builders. Both parts are JSON, which is YAML: written to a file named `.yml`.

    static   where it listens, and from whom it learns of dev servers
    dynamic  who is asked before a preview is opened, and what answers where no server does

Nothing in here buffers or ends a stream: WebSockets and server-sent events stay open as long as both ends want.
"""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from workflows.contracts.names import LABEL_INSTANCE

_AUTH_PATH = "/internal/preview/auth"
_FALLBACK_PATH = "/internal/preview/fallback"
_ROUTING_PATH = "/internal/traefik/config"

_SERVER_AWAY = ["502", "504"]
"""What Traefik itself says when a server doesn't answer; a 503 is an app's own and is left alone."""


def static_config(
    *,
    discovery: Literal["docker", "kubernetes", "http"],
    listen: str,
    api_url: str,
    gate_key: str,
    instance: str,
    dynamic_file: Path,
    docker_endpoint: str | None = None,
    namespace: str | None = None,
) -> dict[str, Any]:
    """What Traefik is started with.

    `discovery`: `docker` reads the labels of this `instance`'s containers, `kubernetes` its Ingresses in `namespace`
    (of the cluster that Traefik's environment names by `KUBECONFIG`), `http` asks the API, for dev servers that are
    processes. `listen`: e.g. `127.0.0.1:8080`. `api_url`: the API as Traefik reaches it.
    """
    providers: dict[str, Any] = {
        # Traefik gathers changes for two seconds by default: a started server would wait that long for its route.
        "providersThrottleDuration": "10ms",
        "file": {"filename": str(dynamic_file), "watch": True},
    }
    if discovery == "docker":
        providers["docker"] = _docker_provider(instance, docker_endpoint)
    elif discovery == "kubernetes":
        # A service without a ready pod gets no route here, so the waking page answers, as for a container that is gone.
        providers["kubernetesIngress"] = {"namespaces": [namespace], "labelSelector": f"{LABEL_INSTANCE}={instance}"}
    else:
        providers["http"] = {
            "endpoint": f"{api_url}{_ROUTING_PATH}?key={quote(gate_key)}",
            # What a started local server waits for its route at most; an answer costs the API a millisecond.
            "pollInterval": "100ms",
            "pollTimeout": "2s",
        }
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "WARN", "noColor": True},
        "entryPoints": {
            "web": {
                "address": listen,
                "transport": {
                    # readTimeout bounds the whole request, and with it every stream: no bound but the idle one.
                    "respondingTimeouts": {"readTimeout": "0s", "writeTimeout": "0s", "idleTimeout": "180s"},
                    "lifeCycle": {"graceTimeOut": "1s"},
                },
            }
        },
        "serversTransport": {
            "maxIdleConnsPerHost": 32,
            "forwardingTimeouts": {"dialTimeout": "1s", "responseHeaderTimeout": "0s", "idleConnTimeout": "90s"},
        },
        "providers": providers,
    }


def dynamic_config(*, preview_domain: str, api_url: str, gate_key: str, old_traefik: bool = False) -> dict[str, Any]:
    """Middlewares `preview-auth` and `preview-errors`, and the route of every preview whose server doesn't run.

    `api_url`: the API as Traefik reaches it. `gate_key`: what it shows there (`api.preview.gate_key`):
    keep the file private. `old_traefik`: for 3.0, which knows fewer words; the page in place of a server that doesn't
    answer then has the status 502 or 504.
    """
    domain = preview_domain.replace(".", r"\.")
    query = f"key={quote(gate_key)}"
    auth = _forward_auth(f"{api_url}{_AUTH_PATH}?{query}")
    errors: dict[str, Any] = {
        "status": _SERVER_AWAY,
        "service": "preview-fallback",
        "query": f"{_FALLBACK_PATH}?{query}",
    }
    if not old_traefik:
        auth |= {"preserveLocationHeader": True, "maxResponseBodySize": 1024 * 1024}
        errors["statusRewrites"] = dict.fromkeys(_SERVER_AWAY, 503)
    return {
        "http": {
            "middlewares": {
                "preview-auth": {"forwardAuth": auth},
                "preview-errors": {"errors": errors},
                "preview-key": {"headers": {"customRequestHeaders": {"X-Studio-Gate": gate_key}}},
                "preview-path": {"replacePath": {"path": _FALLBACK_PATH}},
            },
            "routers": {
                "preview-fallback": {
                    "rule": rf"HostRegexp(`(?i)^user[1-9][0-9]*-project[1-9][0-9]*\.{domain}$`)",
                    "priority": 1,
                    "entryPoints": ["web"],
                    "middlewares": ["preview-auth", "preview-key", "preview-path"],
                    "service": "preview-fallback",
                }
            },
            "services": {"preview-fallback": {"loadBalancer": {"servers": [{"url": api_url}]}}},
        }
    }


def _docker_provider(instance: str, endpoint: str | None) -> dict[str, Any]:
    provider: dict[str, Any] = {
        "exposedByDefault": False,
        "constraints": f"Label(`{LABEL_INSTANCE}`, `{instance}`)",
    }
    if endpoint is not None:
        provider["endpoint"] = endpoint
    return provider


def _forward_auth(address: str) -> dict[str, Any]:
    return {
        "address": address,
        "trustForwardHeader": False,
        # Taken from the answer in place of the request's own; one that the answer lacks is taken out.
        "authResponseHeaders": ["X-Preview-User", "Cookie", "Authorization", "X-Preview-Token"],
    }

"""What Traefik needs before the previews of a service in a cluster: `python -m workers.gateway FORM ADDRESS` prints it.

FORM: `resources` for Traefik's CRD provider (`| kubectl apply -f -`), which must allow references between namespaces;
`file` for its file provider. ADDRESS: the API's Service as Traefik reaches it, e.g.
`http://studio-api.studio.svc.cluster.local`. `--old-traefik`: for 3.0 to 3.3, which know fewer words.

It is the gate `preview-auth`, the page `preview-errors`, and the route of every preview whose server doesn't run; with
the key that Traefik shows to the API, so it is made where SECRET_KEY is, and kept by nobody else.
"""

import argparse
import json
import sys
from typing import Any

from api.preview.gate_key import gate_key
from storage.secret_box import SecretBox
from workers.settings import load_service_settings
from workers.stack.traefik_config import dynamic_config

_API = {"name": "studio-api", "port": 80}


def manifests(configuration: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Traefik's dynamic configuration in the words of its custom resources, in the API's namespace."""
    http = configuration["http"]
    items = [_middleware(name, spec, namespace) for name, spec in http["middlewares"].items()]
    items += [_route(name, router, namespace) for name, router in http["routers"].items()]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _middleware(name: str, spec: dict[str, Any], namespace: str) -> dict[str, Any]:
    if "errors" in spec:  # the one kind that names a service
        spec = {"errors": {**spec["errors"], "service": {**_API, "namespace": namespace}}}
    return _resource("Middleware", name, namespace, spec)


def _route(name: str, router: dict[str, Any], namespace: str) -> dict[str, Any]:
    route = {
        "kind": "Rule",
        "match": router["rule"],
        "priority": router["priority"],
        "middlewares": [{"name": middleware} for middleware in router["middlewares"]],
        "services": [_API],
    }
    return _resource("IngressRoute", name, namespace, {"routes": [route]})


def _resource(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "traefik.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "studio"}},
        "spec": spec,
    }


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m workers.gateway", description=__doc__)
    parser.add_argument("form", choices=("resources", "file"))
    parser.add_argument("address")
    parser.add_argument("--namespace", default="studio", help="of the API")
    parser.add_argument("--old-traefik", action="store_true")
    arguments = parser.parse_args()
    settings = load_service_settings()
    configuration = dynamic_config(
        preview_domain=settings.preview_domain,
        api_url=arguments.address.rstrip("/"),
        gate_key=gate_key(SecretBox(settings.secret_key.get_secret_value(), settings.secret_key_previous)),
        old_traefik=arguments.old_traefik,
    )
    resources = arguments.form == "resources"
    json.dump(manifests(configuration, arguments.namespace) if resources else configuration, sys.stdout, indent=2)


if __name__ == "__main__":
    main()

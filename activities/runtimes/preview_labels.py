"""How Traefik learns of a dev server: labels on its container."""

from workflows.contracts.names import ProjectRef, container_name, preview_host


def preview_labels(ref: ProjectRef, port: int, preview_domain: str, network: str) -> dict[str, str]:
    """Labels of the project's router and service; `preview-auth` and `preview-errors` stand in Traefik's own files."""
    name = container_name(ref)
    router = f"traefik.http.routers.{name}"
    return {
        "traefik.enable": "true",
        "traefik.docker.network": network,
        f"{router}.rule": f"Host(`{preview_host(ref, preview_domain)}`)",
        f"{router}.entryPoints": "web",
        f"{router}.middlewares": "preview-auth@file,preview-errors@file",
        f"{router}.service": name,
        f"traefik.http.services.{name}.loadbalancer.server.port": str(port),
    }

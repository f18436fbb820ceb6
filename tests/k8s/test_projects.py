"""What projects stand on in a cluster, read from the rendered manifests: who may speak to whom, and who may do what."""

import ipaddress
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kustomize import PROJECTS, render, render_projects
from workers.settings import Settings

SCHEMAS = ("1.30", kubernetes_validate.latest_version().rpartition(".")[0])
NAME = "kubernetes.io/metadata.name"
PRIVATE = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
    *("::/128", "::1/128", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16"),
    *("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
)
NETWORKS = tuple(map(ipaddress.ip_network, PRIVATE))
PUBLIC = ("1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "172.32.0.1", "192.169.0.1", "2606:4700:4700::1111")


@cache
def manifests() -> list[dict[str, Any]]:
    return render(PROJECTS)


def of_kind(kind: str) -> list[dict[str, Any]]:
    found = [manifest for manifest in manifests() if manifest["kind"] == kind]
    assert found
    return found


def policies() -> dict[str, Any]:
    return {policy["metadata"]["name"]: policy["spec"] for policy in of_kind("NetworkPolicy")}


def peers(direction: str, side: str) -> list[dict[str, Any]]:
    """Every peer that any policy lets in or out."""
    return [peer for spec in policies().values() for rule in spec.get(direction, []) for peer in rule[side]]


@pytest.mark.parametrize("version", SCHEMAS)
def test_the_schemas_accept_all_of_it(version: str) -> None:
    for manifest in manifests():
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_it_is_one_namespace_and_what_lies_in_it() -> None:
    (namespace,) = of_kind("Namespace")
    name = Settings.model_fields["kubernetes_namespace"].default
    assert namespace["metadata"]["name"] == name
    assert [one["metadata"]["namespace"] for one in manifests() if one is not namespace] == [name] * (
        len(manifests()) - 1
    )
    (claim,) = of_kind("PersistentVolumeClaim")
    assert claim["metadata"]["name"] == Settings.model_fields["kubernetes_volume_claim"].default
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert not {"storageClassName", "volumeName"} & claim["spec"].keys()


def test_another_installation_has_another_namespace(tmp_path: Path) -> None:
    others = render_projects("elsewhere", tmp_path)
    assert {one["metadata"].get("namespace", one["metadata"]["name"]) for one in others} == {"elsewhere"}
    accounts = [one["subjects"] for one in others if one["kind"] == "RoleBinding"]
    assert accounts == [one["subjects"] for one in of_kind("RoleBinding")]


def test_pods_are_held_to_restricted() -> None:
    labels = of_kind("Namespace")[0]["metadata"]["labels"]
    security = {key.rpartition("/")[2]: value for key, value in labels.items() if key.startswith("pod-security.")}
    modes = ("enforce", "audit", "warn")
    assert security == dict.fromkeys(modes, "restricted") | {f"{mode}-version": "latest" for mode in modes}


def test_pods_are_given_no_account() -> None:
    (account,) = of_kind("ServiceAccount")
    assert (account["metadata"]["name"], account["automountServiceAccountToken"]) == ("default", False)
    bound = [subject["name"] for binding in of_kind("RoleBinding") for subject in binding["subjects"]]
    assert "default" not in bound


# --- who may speak to whom ---


def test_nobody_speaks_to_anybody_by_default() -> None:
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies().values()
    assert all(spec["podSelector"] == {} for spec in policies().values())


def test_the_gateway_and_the_service_come_in_and_nobody_else() -> None:
    assert peers("ingress", "from") == [
        {
            "namespaceSelector": {
                "matchExpressions": [{"key": NAME, "operator": "In", "values": ["traefik", "kube-system", "studio"]}]
            },
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "traefik"}},
        },
        {
            "namespaceSelector": {"matchLabels": {NAME: "ingress-nginx"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "ingress-nginx"}},
        },
        {
            "namespaceSelector": {"matchLabels": {NAME: "studio"}},
            "podSelector": {
                "matchExpressions": [
                    {"key": "app.kubernetes.io/name", "operator": "In", "values": ["studio-api", "studio-worker"]}
                ]
            },
        },
    ]


def test_inside_the_cluster_only_names_are_asked_for() -> None:
    rules = [rule for spec in policies().values() for rule in spec.get("egress", [])]
    inside = [rule for rule in rules if any("ipBlock" not in peer for peer in rule["to"])]
    assert inside == [
        {
            "to": [
                {
                    "namespaceSelector": {"matchLabels": {NAME: "kube-system"}},
                    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                }
            ],
            "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
        }
    ]


def reached(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether any policy lets a project out to it."""
    blocks = [peer["ipBlock"] for peer in peers("egress", "to") if "ipBlock" in peer]
    return any(
        address in ipaddress.ip_network(block["cidr"])
        and not any(address in ipaddress.ip_network(hole) for hole in block.get("except", []))
        for block in blocks
    )


@given(address=st.sampled_from(NETWORKS).flatmap(lambda network: st.ip_addresses(network=network)))
def test_no_private_address_is_reached(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert not reached(address)


@pytest.mark.parametrize("network", PRIVATE)
def test_no_private_network_is_reached_at_its_ends(network: str) -> None:
    ends = ipaddress.ip_network(network)
    assert not reached(ends.network_address)
    assert not reached(ends.broadcast_address)


@pytest.mark.parametrize("address", PUBLIC)
def test_the_internet_is_reached(address: str) -> None:
    assert reached(ipaddress.ip_address(address))


def test_every_exception_lies_within_its_block() -> None:
    """The API server refuses another one."""
    for peer in peers("egress", "to"):
        block = peer.get("ipBlock", {"cidr": "::/0"})
        outer = ipaddress.ip_network(block["cidr"])
        for hole in map(ipaddress.ip_network, block.get("except", [])):
            assert hole.version == outer.version
            assert hole != outer
            assert (hole.network_address in outer, hole.prefixlen > outer.prefixlen) == (True, True)


# --- who may do what, and how much ---


def test_nothing_is_allowed_by_a_wildcard_or_beyond_the_namespace() -> None:
    assert not [one for one in manifests() if one["kind"] in {"ClusterRole", "ClusterRoleBinding"}]
    rules = [rule for role in of_kind("Role") for rule in role["rules"]]
    words = [word for rule in rules for field in ("apiGroups", "resources", "verbs") for word in rule[field]]
    assert "*" not in words
    assert not {"secrets", "serviceaccounts", "serviceaccounts/token", "nodes", "roles", "rolebindings"} & set(words)
    assert not {"bind", "escalate", "impersonate", "deletecollection", "update"} & set(words)
    assert not [rule for rule in rules if "pods" in rule["resources"] and "create" in rule["verbs"]]


def test_the_roles_are_those_of_the_service() -> None:
    bound = {
        (binding["roleRef"]["kind"], binding["roleRef"]["name"]): [
            (subject["kind"], subject["namespace"], subject["name"]) for subject in binding["subjects"]
        ]
        for binding in of_kind("RoleBinding")
    }
    worker, api = ("ServiceAccount", "studio", "studio-worker"), ("ServiceAccount", "studio", "studio-api")
    assert bound == {("Role", "studio-runs-projects"): [worker], ("Role", "studio-visits-projects"): [api, worker]}
    assert {role["metadata"]["name"] for role in of_kind("Role")} == {name for _, name in bound}


def test_projects_have_a_bound_together_and_no_other_way_in() -> None:
    (quota,) = of_kind("ResourceQuota")
    hard = quota["spec"]["hard"]
    assert hard.keys() >= {"pods", "requests.cpu", "requests.memory", "limits.memory", "requests.ephemeral-storage"}
    closed = {"services.loadbalancers": "0", "services.nodeports": "0", "persistentvolumeclaims": "1"}
    assert closed.items() <= hard.items()
    (limits,) = of_kind("LimitRange")
    (container,) = limits["spec"]["limits"]
    assert container["type"] == "Container"
    assert all(
        container[part].keys() == {"cpu", "memory", "ephemeral-storage"}
        for part in ("default", "defaultRequest", "max")
    )

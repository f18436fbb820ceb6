"""The API server as the driver speaks to it: its objects as JSON, in one namespace.

The official client brings configuration, credentials and TLS. Its models stay out: they know the fields of one release
of Kubernetes, and making them of every answer costs more than the answer.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Final

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import load_incluster_config, load_kube_config

from activities.runtimes.kubernetes_faults import CONFLICT, NOT_FOUND, UNAUTHORIZED, RefusedError, refusal

FIELD_MANAGER: Final = "studio"
"""Who owns what we apply. Fields of anybody else are edits by hand."""

PROTOCOL: Final = "v4.channel.k8s.io"
"""Of execs; every release since 1.4 serves it."""

_APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
_MERGE: Final = "application/merge-patch+json"
_CALL: Final = aiohttp.ClientTimeout(total=30, connect=5)
_PAGE: Final = 500
_WATCH_S: Final = 300
_WATCH_READ_S: Final = 150
"""An idle watch is sent a bookmark about every minute."""
_LOG_READ_S: Final = 30
_PIECE: Final = 64 * 1024
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_OPEN_S: Final = 15.0
_CLOSE_S: Final = 1.0
_FAREWELL_S: Final = 0.1
_ERROR: Final = 400

Object = dict[str, Any]
"""One of the cluster's objects, as it is on the wire."""


class Kind(Enum):
    """What the driver deals with: group's path and plural name."""

    POD = ("api/v1", "pods")
    SERVICE = ("api/v1", "services")
    EVENT = ("api/v1", "events")
    DEPLOYMENT = ("apis/apps/v1", "deployments")
    INGRESS = ("apis/networking.k8s.io/v1", "ingresses")


class Cluster:
    """One namespace of a cluster. Raises `RefusedError`, `aiohttp.ClientError`, `TimeoutError`, `OSError` and
    `ConfigException`: `kubernetes_faults.faults` turns them into faults. Nothing is retried here.
    """

    def __init__(self, kubeconfig: Path | None, namespace: str) -> None:
        """`kubeconfig` None: this pod's own service account."""
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self._client: ApiClient | None = None
        self._stale = False

    async def get(self, kind: Kind, name: str) -> Object | None:
        """The object, None when there is none."""
        async with self._call("GET", self._path(kind, name)) as response:
            return None if response.status == NOT_FOUND else await _answer(response)

    async def list(
        self, kind: Kind, *, labels: str = "", fields: str = "", limit: int | None = None
    ) -> tuple[list[Object], str]:
        """All that match (at most `limit`), and the version of the list, to watch from."""
        query = [("labelSelector", labels), ("fieldSelector", fields), ("limit", str(limit or _PAGE))]
        found: list[Object] = []
        going_on = ""
        while True:
            page = [*query, ("continue", going_on)] if going_on else query
            async with self._call("GET", self._path(kind), page) as response:
                answer = await _answer(response)
            found += answer.get("items") or []
            going_on = answer["metadata"].get("continue") or ""
            if not going_on or limit is not None:
                return found, str(answer["metadata"]["resourceVersion"])

    async def watch(self, kind: Kind, *, labels: str, version: str) -> AsyncIterator[Object]:
        """Changes since `version`, as `{type, object}`, until the server ends the watch (some minutes)."""
        query = [
            ("watch", "true"),
            ("labelSelector", labels),
            ("resourceVersion", version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(_WATCH_S)),
        ]
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=_WATCH_READ_S)
        async with self._call("GET", self._path(kind), query, timeout=timeout) as response:
            await _check(response)
            while line := await response.content.readline():
                yield json.loads(line)

    async def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> Object:
        """Have the object so, whoever else had a say in these fields. Made when it isn't there."""
        query = [("fieldManager", FIELD_MANAGER), ("force", "true")]
        path = self._path(kind, manifest["metadata"]["name"])
        async with self._call("PATCH", path, query, body=manifest, content=_APPLY) as response:
            return await _answer(response)

    async def merge(self, kind: Kind, name: str, change: Mapping[str, Any]) -> Object | None:
        """The object with `change` merged in, None when there is none."""
        query = [("fieldManager", FIELD_MANAGER)]
        async with self._call("PATCH", self._path(kind, name), query, body=change, content=_MERGE) as response:
            return None if response.status == NOT_FOUND else await _answer(response)

    async def delete(self, kind: Kind, name: str, *, uid: str | None = None, grace_s: int | None = None) -> None:
        """Have the object go, and what it owns after it. Gone already, or another by now (`uid`), is success."""
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        async with self._call("DELETE", self._path(kind, name), body=options) as response:
            if response.status != NOT_FOUND and not (uid is not None and response.status == CONFLICT):
                await _check(response)

    async def log(self, pod: str, query: Sequence[tuple[str, str]], *, follow: bool) -> AsyncIterator[bytes]:
        """A container's output, undecoded, in pieces as they come."""
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=None if follow else _LOG_READ_S)
        asked = [*query, ("follow", "true" if follow else "false")]
        async with self._call("GET", f"{self._path(Kind.POD, pod)}/log", asked, timeout=timeout) as response:
            await _check(response)
            while piece := await response.content.read(_PIECE):
                yield piece

    @asynccontextmanager
    async def exec(
        self, pod: str, container: str, command: Sequence[str]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A process in a pod, by WebSocket. Leaving the context closes the connection, and with it its input."""
        query = [("container", container), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
        query += [("command", argument) for argument in command]
        client = await self._open()
        _, url, headers, _, _ = await self._serialized(client, "GET", f"{self._path(Kind.POD, pod)}/exec", query)
        try:
            async with asyncio.timeout(_OPEN_S):
                connection = await _session(client).ws_connect(
                    url,
                    headers=headers,
                    protocols=(PROTOCOL,),
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                    max_msg_size=0,  # pieces of output; their size is the kubelet's choice
                    proxy=client.configuration.proxy,
                    server_hostname=client.configuration.tls_server_name or None,
                )
        except aiohttp.WSServerHandshakeError as error:  # it holds the request's headers, and in them our token
            raise RefusedError(error.status, f"the exec was refused with HTTP {error.status}") from None
        async with connection:
            yield connection

    async def close(self) -> None:
        """Let connections go."""
        if self._client is not None:
            await self._client.close()
            await asyncio.sleep(_FAREWELL_S)  # TLS says goodbye by itself, as long as there is a loop

    # --- connection ---

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
        timeout: aiohttp.ClientTimeout = _CALL,  # noqa: ASYNC109 -- of the transport, in three parts
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        client = await self._open()
        _, url, headers, text, _ = await self._serialized(client, method, path, query, body=body, content=content)
        answer = await client.call_api(method, url, headers, text, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        try:
            self._stale = self._stale or response.status == UNAUTHORIZED
            yield response
        finally:
            if not response.content.at_eof() and response.connection is not None and response.connection.transport:
                response.connection.transport.abort()  # a stream that is left: its end needs no goodbye
            response.release()

    async def _serialized(
        self,
        client: ApiClient,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> tuple[Any, ...]:
        headers = {"Content-Type": content}
        asked = [(key, value) for key, value in query if value]
        return tuple(
            await client.param_serialize(method, path, None, asked, headers, body=body, auth_settings=["BearerToken"])
        )

    async def _open(self) -> ApiClient:
        """The client. Its credentials are read anew once the server has refused them: they may have an end."""
        if self._client is None or self._stale:
            configuration = Configuration()
            if self._kubeconfig is None:
                load_incluster_config(configuration)
            else:
                await load_kube_config(str(self._kubeconfig), client_configuration=configuration, persist_config=False)
            if self._client is None:
                self._client = ApiClient(configuration)
                self._client.rest_client = _Transport(configuration)
            self._client.configuration = configuration
            self._stale = False
        return self._client

    def _path(self, kind: Kind, name: str | None = None) -> str:
        group, plural = kind.value
        path = f"/{group}/namespaces/{self._namespace}/{plural}"
        return path if name is None else f"{path}/{name}"


class _Transport(RESTClientObject):
    """Connections without a bound on their number (a followed log or an open terminal holds one for hours) that notice
    when the other side is gone.
    """

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=0, ssl=self.ssl_context, socket_factory=_socket)


def _socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _session(client: ApiClient) -> aiohttp.ClientSession:
    transport = client.rest_client
    if transport.pool_manager is None:
        transport.pool_manager = transport._create_pool_manager()  # noqa: SLF001 -- as its own WebSocket client does
    session: aiohttp.ClientSession = transport.pool_manager
    return session


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status >= _ERROR:
        raise refusal(response.status, await response.read())


async def _answer(response: aiohttp.ClientResponse) -> Object:
    await _check(response)
    answer: Object = json.loads(await response.read())
    return answer

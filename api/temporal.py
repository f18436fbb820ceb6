"""The API's one way to Temporal: connects by itself, and says 503 in time when it can't."""

import asyncio
from datetime import timedelta

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError

from workflows.contracts.errors import UnavailableError

_CONNECT_TIMEOUT_S = 3
_HEALTH_TIMEOUT = timedelta(seconds=2)


class TemporalGateway:
    """A client that is made at first use, so that the API starts and serves reads while Temporal is away."""

    def __init__(self, address: str, namespace: str, *, tls: bool = False, api_key: str | None = None) -> None:
        self._address = address
        self._namespace = namespace
        self._tls = tls
        self._api_key = api_key
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def client(self) -> Client:
        """The connected client. Raises `UnavailableError` when Temporal doesn't answer."""
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def require(self) -> Client:
        """The client, after Temporal has just answered: called before a row is written that needs it.

        A 503 then means that nothing was accepted, and the client may simply try again.
        """
        client = await self.client()
        try:
            await client.service_client.check_health(timeout=_HEALTH_TIMEOUT)
        except RPCError as error:
            raise _unavailable() from error
        return client

    async def _connect(self) -> Client:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                return await Client.connect(
                    self._address,
                    namespace=self._namespace,
                    data_converter=pydantic_data_converter,
                    tls=self._tls,
                    api_key=self._api_key,
                )
        except (TimeoutError, RuntimeError, RPCError) as error:
            raise _unavailable() from error


def _unavailable() -> UnavailableError:
    return UnavailableError("The workflow service doesn't answer; try again in a moment.")

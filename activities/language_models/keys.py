"""`ModelKeys` over LiteLLM's proxy: one virtual key per user, found again by its alias."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from activities.errors import ModelFault, ModelKeyRefusedError, ModelUnavailableError
from activities.language_models.faults import ServerError, read_error, to_fault
from activities.language_models.wire import Patience, ask, make_client
from workflows.contracts.names import model_key_alias

_OK = 200
_NOT_FOUND = 404
_BUDGET_PERIOD = "1mo"
_ATTEMPTS = 3
"""Between the removal of an old key and the making of a new one, another call may have made its own."""


class LiteLLMKeys:
    """Keys of one installation, `instance`, at the proxy at `base_url` (without a version).

    Everything the proxy fails at may pass, so it is `ModelUnavailableError`; only a wrong master key isn't.
    """

    def __init__(self, base_url: str, master_key: str, *, instance: str, patience: Patience | None = None) -> None:
        self._client = make_client(base_url.rstrip("/"), patience or Patience())
        self._master_key = master_key
        self._instance = instance

    async def create(self, user_id: int, *, budget_usd: Decimal | None) -> str:
        """Make the user's key and return it; one that is there under the alias is replaced, spend and all.

        Safe after a call that died when the proxy had made the key already: nobody knows that one, and it goes.
        Two calls at once may leave two keys under the alias; the next `create` or `revoke` removes both.
        """
        wanted = {"key_alias": self._alias(user_id), "key_type": "llm_api", "models": [], **_budget(budget_usd)}
        error = ServerError(None)
        for _ in range(_ATTEMPTS):
            await self.revoke(user_id)
            status, body, headers = await self._post("/key/generate", wanted)
            if status == _OK and isinstance(body, dict) and isinstance(body.get("key"), str):
                return str(body["key"])
            error = read_error(status, body, headers)
            if "already exists" not in error.message:
                break
        raise _fault(error)

    async def set_budget(self, user_id: int, budget_usd: Decimal | None) -> None:
        """Change the month's budget; no key there is success."""
        for token in await self._tokens(user_id):
            status, body, headers = await self._post("/key/update", {"key": token, **_budget(budget_usd)})
            if status not in {_OK, _NOT_FOUND}:
                raise _fault(read_error(status, body, headers))

    async def revoke(self, user_id: int) -> None:
        """Remove the user's key; gone already is success."""
        status, body, headers = await self._post("/key/delete", {"key_aliases": [self._alias(user_id)]})
        if status not in {_OK, _NOT_FOUND}:
            raise _fault(read_error(status, body, headers))

    async def close(self) -> None:
        """Let connections go."""
        await self._client.aclose()

    def _alias(self, user_id: int) -> str:
        return model_key_alias(self._instance, user_id)

    async def _tokens(self, user_id: int) -> list[str]:
        """The proxy's own ids (hashes) of the user's key: one or none."""
        path = f"/key/list?key_alias={self._alias(user_id)}&return_full_object=false&size=10"
        status, body, headers = await ask(self._client, "GET", path, key=self._master_key)
        if status != _OK or not isinstance(body, dict):
            raise _fault(read_error(status, body, headers))
        return [token for token in body.get("keys") or [] if isinstance(token, str)]

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any, Mapping[str, str]]:
        return await ask(self._client, "POST", path, key=self._master_key, body=body)


def _budget(amount: Decimal | None) -> dict[str, Any]:
    if amount is None:
        return {"max_budget": None, "budget_duration": None}
    return {"max_budget": float(amount), "budget_duration": _BUDGET_PERIOD}


def _fault(error: ServerError) -> ModelFault:
    if error.status in {401, 403}:
        return ModelKeyRefusedError("The proxy refuses the master key.")
    fault = to_fault(error, model="")
    return fault if isinstance(fault, ModelUnavailableError) else ModelUnavailableError(f"The proxy: {fault}")

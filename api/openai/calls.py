"""One call for a client of `/v1`: reserved before it is made, settled after it, however it ends.

The reservation is a row, so a process that dies leaves it to `Reconcile`. A call that the server refused before its
first word costs nothing; one that was cut, by whichever side, is settled from what had come, as an estimate.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import anyio
import structlog
from uuid6 import uuid7

from activities.errors import ModelFault
from activities.model_costs import estimate, price, tokens_of
from activities.ports import CompletionPiece, ModelInfo, ModelUsage
from api.onboarding import begin_onboarding
from api.openai.errors import INSUFFICIENT_QUOTA
from api.openai.requests import CompletionRequest, characters
from api.services import Services
from storage import model_keys, model_ledger
from storage.model_ledger import Admission, Reservation
from workflows.contracts.errors import StudioError, ThrottledError, UnavailableError

_ADMISSION_S: Final = 30.0
"""How long a call waits for the user's other calls to settle, when those have reserved what is left."""
_ADMISSION_POLL_S: Final = 0.2
_SETTLING_S: Final = 5.0
_SETTLING_PAUSE_S: Final = 0.5

_log = structlog.get_logger("api.openai")


class Call:
    """A call of one user. `open` or `complete` once, then `end`, always; `end` may come again and at any time."""

    def __init__(self, services: Services, user_id: int, request: CompletionRequest, info: ModelInfo | None) -> None:
        self._services = services
        self._user_id = user_id
        self._request = request
        self._info = info
        self._id = uuid7()
        self._chunks: AsyncGenerator[CompletionPiece, None] | None = None
        self._reserved = self._asked = self._refused = False
        self._written = 0
        self._usage: ModelUsage | None = None

    async def open(self) -> CompletionPiece | None:
        """Reserve, ask, and give the first chunk; None for an empty answer. Raises what `complete` does."""
        await self._begin()
        key = await self._key()
        self._asked = True
        self._chunks = self._services.completions.stream(
            self._request.body, key=key, max_output_tokens=self._request.max_output_tokens
        )
        return await self._next()

    async def chunks(self, first: CompletionPiece | None) -> AsyncGenerator[CompletionPiece, None]:
        """All chunks, from the first. Raises `ModelFault` for an answer that breaks off."""
        piece = first
        while piece is not None:
            yield piece
            piece = await self._next()

    async def complete(self) -> CompletionPiece:
        """Reserve, ask, and give the whole answer.

        Raises `ModelFault`, `ThrottledError` (`insufficient_quota` for a spent budget), `UnavailableError`.
        """
        await self._begin()
        key = await self._key()
        self._asked = True
        try:
            answer = await self._services.completions.complete(
                self._request.body, key=key, max_output_tokens=self._request.max_output_tokens
            )
        except ModelFault:
            self._refused = True
            raise
        self._hear(answer)
        return answer

    async def end(self) -> None:
        """Close what is open at the server, and settle. Not stopped by a cancellation, but bounded."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_SETTLING_S):
                if self._chunks is not None:
                    await self._chunks.aclose()
            reserved, self._reserved = self._reserved, False
            if reserved:
                with anyio.move_on_after(_SETTLING_S) as bound:
                    await self._settle()
                if bound.cancelled_caught:
                    _log.warning("call not settled", call_id=str(self._id), user_id=self._user_id)

    async def _next(self) -> CompletionPiece | None:
        if self._chunks is None:
            return None
        try:
            piece = await anext(self._chunks, None)
        except ModelFault:
            self._refused = self._written == 0 and self._usage is None
            raise
        if piece is not None:
            self._hear(piece)
        return piece

    def _hear(self, piece: CompletionPiece) -> None:
        self._usage = piece.usage or self._usage
        for choice in piece.body.get("choices") or []:
            if isinstance(choice, dict):
                self._written += _text_in(choice.get("delta") or choice.get("message"))

    async def _key(self) -> str | None:
        """The user's own key where users have some; None: the service's."""
        services = self._services
        if not services.config.users_have_model_keys:
            return None
        async with services.database.reading() as session:
            key = await model_keys.key_of(session, self._user_id, services.secrets)
        if key is None:
            await begin_onboarding(services, self._user_id, changed=False)
            raise UnavailableError("Your key for language models is being made; try again in a moment.")
        return key

    async def _begin(self) -> None:
        """Reserve what the call may cost; wait for others that have reserved what is left."""
        request = self._request
        estimate_usd, input_usd = estimate(request.characters, request.max_output_tokens, self._info)
        wanted = Reservation(self._id, self._user_id, request.model, estimate_usd, input_usd=input_usd)
        deadline = asyncio.get_running_loop().time() + _ADMISSION_S
        while True:
            self._reserved = True  # before the commit: its answer may be lost, and then the row is there
            async with self._services.database.transaction() as session:
                admission = await model_ledger.reserve(
                    session, wanted, default_monthly_usd=self._services.config.user_monthly_budget_usd
                )
            if admission is Admission.ADMITTED:
                return
            self._reserved = False
            if admission is not Admission.WAIT:
                raise _budget_spent()
            if asyncio.get_running_loop().time() > deadline:
                raise ThrottledError("Your other calls have reserved what is left of the budget.", retry_after=5)
            await asyncio.sleep(_ADMISSION_POLL_S)

    async def _settle(self) -> None:
        while True:
            try:
                async with self._services.database.transaction() as session:
                    if not self._asked or self._refused:
                        await model_ledger.release(session, self._id)
                        return
                    tokens_in, tokens_out, cost, estimated = self._outcome()
                    await model_ledger.settle(
                        session,
                        self._id,
                        input_tokens=tokens_in,
                        output_tokens=tokens_out,
                        cost_usd=cost,
                        estimated=estimated,
                    )
                    return
            except StudioError:  # Postgres is away; what isn't settled in time is `Reconcile`'s
                await asyncio.sleep(_SETTLING_PAUSE_S)

    def _outcome(self) -> tuple[int, int, Decimal, bool]:
        """Tokens in and out, cost, and whether it is our reckoning."""
        usage = self._usage
        if usage is None:
            tokens_in, tokens_out = tokens_of(self._request.characters), tokens_of(self._written)
            return tokens_in, tokens_out, price(tokens_in, tokens_out, self._info), True
        if usage.cost_usd is not None:
            return usage.input_tokens, usage.output_tokens, usage.cost_usd, False
        cost = price(usage.input_tokens, usage.output_tokens, self._info)
        return usage.input_tokens, usage.output_tokens, cost, True


def visible(piece: CompletionPiece, *, shows_usage: bool) -> Mapping[str, Any] | None:
    """What the client is shown of a chunk; None for the one that only tells a usage it hasn't asked for."""
    if shows_usage:
        return piece.body
    body = {name: value for name, value in piece.body.items() if name != "usage"}
    if piece.usage is not None and not any(_says_something(choice) for choice in body.get("choices") or []):
        return None
    return body


def _says_something(choice: object) -> bool:
    return isinstance(choice, dict) and bool(choice.get("finish_reason") or any((choice.get("delta") or {}).values()))


def _text_in(part: object) -> int:
    """How much a delta or a message says: its texts and its calls, not the names around them."""
    if not isinstance(part, dict):
        return 0
    said = [part.get(name) for name in ("content", "refusal", "reasoning_content", "tool_calls")]
    return sum(characters(value) for value in said if value)


def _budget_spent() -> ThrottledError:
    now = datetime.now(UTC)
    next_month = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return ThrottledError(
        "Your budget for language models is spent for this month.",
        retry_after=int((next_month - now).total_seconds()) + 1,
        code=INSUFFICIENT_QUOTA,
    )

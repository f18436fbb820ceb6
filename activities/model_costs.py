"""What a model call may cost before it is made, and what one did when nobody says."""

from decimal import Decimal
from typing import Final

from activities.ports import ModelInfo

CHARACTERS_A_TOKEN: Final = 3
"""Fewer than most text has, so that an estimate is an upper bound for it."""
_NOTHING: Final = Decimal(0)


def tokens_of(characters: int) -> int:
    """How many tokens a text of this length has, at most for most text."""
    return -(-max(characters, 0) // CHARACTERS_A_TOKEN)


def estimate(messages_chars: int, max_output_tokens: int, info: ModelInfo | None) -> tuple[Decimal, Decimal]:
    """`(estimate_usd, input_usd)`: what the call costs at most, and its prompt's share of that.

    `messages_chars`: of all that is sent, tools' schemas too. An unknown price counts as nothing.
    """
    input_price = (info.input_price if info else None) or _NOTHING
    output_price = (info.output_price if info else None) or _NOTHING
    input_usd = tokens_of(messages_chars) * input_price
    return input_usd + max_output_tokens * output_price, input_usd


def price(input_tokens: int, output_tokens: int, info: ModelInfo | None) -> Decimal:
    """What these tokens cost by the model's prices; an unknown price counts as nothing."""
    input_price = (info.input_price if info else None) or _NOTHING
    output_price = (info.output_price if info else None) or _NOTHING
    return input_tokens * input_price + output_tokens * output_price

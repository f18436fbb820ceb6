from decimal import Decimal

import pytest

from activities.model_costs import estimate, price, tokens_of
from activities.ports import ModelInfo

PRICED = ModelInfo("m", input_price=Decimal("0.001"), output_price=Decimal("0.01"))


def test_an_estimate_has_room_for_the_prompt_and_the_longest_answer() -> None:
    assert estimate(301, 50, PRICED) == (Decimal("0.601"), Decimal("0.101"))


@pytest.mark.parametrize("info", [None, ModelInfo("m")])
def test_an_unknown_price_counts_as_nothing(info: ModelInfo | None) -> None:
    assert estimate(1000, 1000, info) == (Decimal(0), Decimal(0))
    assert price(10, 10, info) == 0


def test_tokens_are_rounded_up_and_priced() -> None:
    assert [tokens_of(n) for n in (-1, 0, 1, 3, 4)] == [0, 0, 1, 1, 2]
    assert price(2, 3, PRICED) == Decimal("0.032")

"""Kinds of fields that several bodies share."""

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, StringConstraints


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the NUL character")
    return value


STORABLE = AfterValidator(_without_nul)
"""Put it last: constraints that follow a validator are looked at before blanks are stripped."""
StorableText = Annotated[str, STORABLE]
"""Text that Postgres can hold."""

Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), STORABLE]
"""The name of a person or a thing."""

Usd = Annotated[Decimal, PlainSerializer(float, return_type=float)]
"""An amount of money in an answer: a number, as other services tell costs."""


class RequestBody(BaseModel):
    """Base of every body that clients send. A field that it doesn't know is refused, so none is smuggled in."""

    model_config = ConfigDict(extra="forbid")

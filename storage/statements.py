"""Statements that nearly every request runs, turned into SQL once.

Building, caching and adapting a statement anew costs SQLAlchemy 0.2 to 0.5 ms of CPU, Postgres' driver 0.03 ms: on a
hot path that is most of a request. `Database.fetch` runs these; everything else goes through a session.
"""

from typing import Any, Final

from sqlalchemy import Select, TextClause
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect

_DIALECT: Final = asyncpg_dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it without types


class Statement:
    """A statement with its SQL. Every value is a `bindparam("name")`, given by name each time that it runs.

    Values go to the driver as they are and come back as it gives them: times, UUIDs and decoded JSON, no ORM rows.
    """

    def __init__(self, query: Select[*tuple[Any, ...]] | TextClause) -> None:
        compiled = query.compile(dialect=_DIALECT)
        constants = [name for name, bind in compiled.binds.items() if not bind.required]
        if constants:
            raise ValueError(f"only named values can be given later, but the query holds {constants}")
        self.sql: Final = str(compiled)
        self._names: Final = tuple(compiled.positiontup or ())

    def arguments(self, values: dict[str, Any]) -> list[Any]:
        """The values in the order of the SQL's placeholders. Raises `KeyError` for one that isn't given."""
        return [values[name] for name in self._names]

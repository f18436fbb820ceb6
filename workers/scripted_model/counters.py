"""How often each answer was begun and how it ended: what a test needs to prove that no call was paid for twice."""

from collections import OrderedDict
from enum import StrEnum

_KEYS = 10_000


class Outcome(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    """Played to its end."""
    CUT = "cut"
    """The client went before."""
    FAILED = "failed"
    """Broken off as its script says."""
    REFUSED = "refused"
    """Answered with an error's status."""


class Counters:
    """Counts by key, of the 10,000 keys that were used last."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, dict[str, int]] = OrderedDict()

    def begin(self, key: str) -> int:
        """Count a request; returns how many of this key there were before."""
        counts = self._of(key)
        counts["begun"] += 1
        return counts["begun"] - 1

    def end(self, key: str, outcome: Outcome) -> None:
        """Count how it ended."""
        self._of(key)[outcome] += 1

    def all(self) -> dict[str, dict[str, int]]:
        """`{key: {"begun": n, "finished": n, "cut": n, "failed": n, "refused": n}}`; what is open has begun only."""
        return {key: dict(counts) for key, counts in self._counts.items()}

    def _of(self, key: str) -> dict[str, int]:
        counts = self._counts.setdefault(key, {"begun": 0} | {str(outcome): 0 for outcome in Outcome})
        self._counts.move_to_end(key)
        if len(self._counts) > _KEYS:
            self._counts.popitem(last=False)
        return counts

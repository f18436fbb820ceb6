"""What the person at the terminal reads: one line for each thing that happened, with the part's name in front."""

import contextlib
import sys


def say(name: str, text: str) -> None:
    """Print a line. A terminal that has gone (closed window, ended pipe) must not keep the stack from ending."""
    with contextlib.suppress(OSError):
        print(f"{name:<11}{text}", flush=True)


def fail(text: str) -> None:
    """Print what went wrong, to stderr."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)

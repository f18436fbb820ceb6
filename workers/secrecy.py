"""What a process that holds secrets keeps from others of its own user."""

import ctypes
import os
import sys
from typing import Final

_SET_DUMPABLE: Final = 4


def keep_to_itself() -> None:
    """Close environment, memory and open files of this process to every other one of its user; root still sees them.

    Without it whatever runs as the same user reads all secrets from `/proc`. It also ends core dumps. What the process
    starts isn't closed by this. For the beginning of a process; on another system than Linux there is nothing to close.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

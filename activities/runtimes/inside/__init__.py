"""Programs that run beside the dev server, in its container; standard library only, Python 3.9 or newer.

They are sent over standard input for each call (`activities/runtimes/guest.py`), so no image has to carry them, and
nothing of a call (command, variables) stands in an argument list that the engine's events would show.
"""

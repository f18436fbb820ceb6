"""`python -m workers.scripted_model --port N [--host 127.0.0.1]`: serves until SIGTERM or SIGINT."""

import argparse

import uvicorn

from workers.scripted_model.app import create_app

_GRACE_S = 1
"""Answers in flight are cut this long after SIGTERM: whoever waits for them asks again."""


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(prog="python -m workers.scripted_model", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
    )


if __name__ == "__main__":
    main()

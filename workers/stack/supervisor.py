"""`up`: starts the parts in the order in which they need each other, keeps them alive, and ends them in reverse."""

import asyncio
import signal
import time
from collections.abc import Mapping

from workers.settings import DeploymentMode, Settings
from workers.stack.cluster import Cluster
from workers.stack.console import say
from workers.stack.data_directory import DataDirectory
from workers.stack.parts import StackParts
from workers.stack.preparation import prepare_dev_servers, stop_dev_servers
from workers.stack.readiness import answers_ok

_TRIM_INTERVAL_S = 30.0
_PATIENCE_S = 15.0
_POLL_S = 0.1


class Supervisor:
    """One stack in the foreground."""

    def __init__(
        self, settings: Settings, data: DataDirectory, mode: DeploymentMode, cluster: Cluster | None = None
    ) -> None:
        self._settings = settings
        self._data = data
        self._mode = mode
        self._parts = StackParts(settings, data, mode, cluster)
        self._stop = asyncio.Event()
        self._began = time.monotonic()

    async def run(self) -> None:
        """Bring the stack up, stay until SIGINT, SIGTERM or SIGHUP, take it down. Raises `StackError`.

        A second signal kills what still runs.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._bring_up_and_stay())
                group.create_task(self._cancel_on_stop(work))
        except ExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            await self._take_down()

    async def _bring_up_and_stay(self) -> None:
        await self._bring_up()
        await self._answer()
        self._welcome()
        while True:
            await asyncio.sleep(_TRIM_INTERVAL_S)
            for part in self._parts.all():
                part.trim_log()

    async def _cancel_on_stop(self, work: asyncio.Task[None]) -> None:
        await self._stop.wait()
        work.cancel()

    async def _bring_up(self) -> None:
        parts = self._parts
        postgres_ready = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._bring_up_storage(postgres_ready))
            group.create_task(self._bring_up_worker(postgres_ready))
            group.create_task(self._bring_up_litellm(postgres_ready))
            group.create_task(parts.traefik.up())
            if parts.model is not None:
                group.create_task(parts.model.up())
            group.create_task(prepare_dev_servers(self._settings, self._mode))

    async def _bring_up_storage(self, postgres_ready: asyncio.Event) -> None:
        if self._parts.postgres is not None:
            await self._parts.postgres.up()
        postgres_ready.set()
        await self._parts.api.up()

    async def _bring_up_worker(self, postgres_ready: asyncio.Event) -> None:
        if self._parts.temporal is not None:
            await self._parts.temporal.up()
        await postgres_ready.wait()
        await self._parts.worker.up()

    async def _bring_up_litellm(self, postgres_ready: asyncio.Event) -> None:
        if self._parts.litellm is not None:
            await postgres_ready.wait()
            await self._parts.litellm.up()

    async def _answer(self) -> None:
        """Wait until the API says that all it needs answers; say what doesn't while it takes long."""
        deadline = time.monotonic() + _PATIENCE_S
        while not await answers_ok(self._settings.api_port, "/readyz"):
            if time.monotonic() > deadline:
                say("stack", f"not ready yet: {self._settings.api_url}/readyz tells what is missing")
                deadline += _PATIENCE_S
            await asyncio.sleep(_POLL_S)

    async def _take_down(self) -> None:
        say("stack", "ending; Ctrl-C again kills what is slow")
        parts = self._parts
        await asyncio.gather(parts.api.down(), self._stop_dev_servers())
        await parts.worker.down()
        await parts.traefik.down()
        for part in (parts.litellm, parts.model, parts.temporal, parts.postgres):
            if part is not None:
                await part.down()
        say("stack", "ended")

    async def _stop_dev_servers(self) -> None:
        if self._parts.worker.is_kept:
            await stop_dev_servers(self._parts.environment(), self._data)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            for part in self._parts.all():
                part.kill()
        self._stop.set()

    def _welcome(self) -> None:
        settings = self._settings
        port = settings.shown_preview_port
        host = f"user<id>-project<id>.{settings.preview_domain}" + (f":{port}" if port else "")
        addresses: Mapping[str, str] = {
            "API": settings.api_url,
            "API docs": f"{settings.api_url}/docs",
            "previews": f"{settings.preview_scheme}://{host}",
            "Temporal UI": f"http://localhost:{settings.temporal_ui_port}" if self._parts.temporal else "yours",
            "models": self._parts.models_shown,
        }
        say("stack", f"ready after {time.monotonic() - self._began:.1f} s; Ctrl-C ends it")
        for name, address in addresses.items():
            say("", f"{name:<12} {address}")


def _first(errors: BaseException) -> BaseException:
    """The first thing that went wrong, out of its groups."""
    return _first(errors.exceptions[0]) if isinstance(errors, BaseExceptionGroup) else errors

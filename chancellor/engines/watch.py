"""Ends engines that will not go on, whether they run, start, or have died."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import psutil

from chancellor.engines.base import Engine
from chancellor.engines.host import in_thread
from chancellor.engines.resident import Resident

__all__ = ["Watch"]

logger = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 1.0
_DEAD_S: Final = 30.0
"""How long an engine that has died is left for who starts it again: a request, or Ray's look every 10 s."""


class Watch:
    """Looks at all engines once a second. What an engine that is ended was answering goes on elsewhere."""

    def __init__(self, residents: Mapping[str, Resident], bury: Callable[[Resident], object]) -> None:
        """Make it.

        Args:
            residents: the engines.
            bury: notes a death, and begins to close the engine.
        """
        self._residents = residents
        self._bury = bury
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look from now on."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), context=contextvars.Context())

    def end(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for resident in tuple(self._residents.values()):
                try:
                    if resident.engine is not None:
                        await self._look_at(resident, resident.engine)
                    elif resident.starting is not None:
                        await self._look_at_start(resident, resident.starting)
                except Exception:  # the others are watched all the same
                    logger.exception("The engine of %r cannot be watched", resident.spec.name)

    async def _look_at(self, resident: Resident, engine: Engine) -> None:
        if resident.moving is not None or resident.ending is not None:  # which have their own limits
            return
        if resident.asleep:  # nothing is lost if it has died, but what it takes
            if not engine.healthy():
                logger.warning("The engine of %r has died in its sleep", resident.spec.name)
                self._bury(resident)
        elif not engine.healthy():
            await self._look_at_dead(resident)
        elif (reason := engine.stalled()) is not None:
            logger.warning("The engine of %r is ended: %s", resident.spec.name, reason)
            engine.kill()

    async def _look_at_dead(self, resident: Resident) -> None:
        """End an engine that nobody asks any more: its front end, and what it takes of the budget, would stay."""
        if resident.spec.engine.kind == "openai":  # a server comes back by itself, and takes nothing of ours
            return
        resident.died = resident.died or time.monotonic()
        if time.monotonic() - resident.died < _DEAD_S or not resident.deserted:
            return
        shortage = await in_thread(resident.shortage)
        if resident.deserted:
            logger.warning("The engine of %r has died: %s", resident.spec.name, shortage or "nobody was asking it")
            self._bury(resident)

    async def _look_at_start(self, resident: Resident, engine: Engine) -> None:
        """End a start whose processes do nothing. What has none yet, as a download, is left alone."""
        reason = engine.stalled() or await in_thread(lambda: _stalled(resident, engine))
        if reason is None or resident.starting is not engine:
            return
        if resident.hung is None:
            logger.warning("The start of %r is ended: %s", resident.spec.name, reason)
        resident.hung = resident.hung or reason
        engine.interrupt()  # again with each look, until it has failed


def _stalled(resident: Resident, engine: Engine) -> str | None:
    processes = []
    for pid in engine.process_ids():
        with suppress(psutil.Error):
            processes.append(psutil.Process(pid))
    resident.pulse.follow(processes)
    return resident.pulse.stalled(busy=bool(processes))

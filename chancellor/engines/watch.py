"""Ends engines that will not go on, whether they run or start."""

import asyncio
import contextvars
import logging
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


class Watch:
    """Looks at all engines once a second. What an engine that is ended was answering goes on elsewhere."""

    def __init__(self, residents: Mapping[str, Resident], ending: Callable[[Resident], object]) -> None:
        """Make it.

        Args:
            residents: the engines.
            ending: begins to close one.
        """
        self._residents = residents
        self._ending = ending
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
                        self._look_at(resident, resident.engine)
                    elif resident.starting is not None:
                        await self._look_at_start(resident, resident.starting)
                except Exception:  # the others are watched all the same
                    logger.exception("The engine of %r cannot be watched", resident.spec.name)

    def _look_at(self, resident: Resident, engine: Engine) -> None:
        if resident.moving is not None or resident.ending is not None:  # which have their own limits
            return
        if resident.asleep:  # nothing is lost if it has died, but what it takes
            if not engine.healthy():
                logger.warning("The engine of %r has died in its sleep", resident.spec.name)
                self._ending(resident)
            return
        if engine.healthy() and (reason := engine.stalled()) is not None:
            logger.warning("The engine of %r is ended: %s", resident.spec.name, reason)
            engine.kill()

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

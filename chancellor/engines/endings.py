"""How engines end."""

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from chancellor.engines.host import in_thread
from chancellor.engines.resident import Resident
from chancellor.resources import give_back

__all__ = ["Endings"]

logger = logging.getLogger(__name__)
_INTERRUPT_EVERY_S: Final = 0.5


class Endings:
    """Closes engines, whether they run, start, or wait for their turn to start."""

    def __init__(self, drop: Callable[[Resident], None]) -> None:
        """Make it.

        Args:
            drop: called with each that has ended.
        """
        self._drop = drop
        self._abandon_at = math.inf
        self.closing = False
        """Whether all of them end, for good."""

    def close(self, patience_s: float | None) -> None:
        """Note that all of them end, and how long a start may go on that does not although it is interrupted."""
        self.closing = True
        if patience_s is not None:
            self._abandon_at = time.monotonic() + patience_s

    async def end(self, resident: Resident) -> None:
        """Close an engine; return when that is done."""
        await asyncio.shield(self.ending(resident))

    def ending(self, resident: Resident) -> "asyncio.Task[None]":
        """Return what closes the engine: one task, however many want it closed and whoever of them is cancelled."""
        resident.leaving = True
        if resident.moving is not None and resident.moving is not asyncio.current_task():
            resident.moving.cancel()
        if resident.ending is None:
            resident.ending = asyncio.create_task(self._finish(resident), context=contextvars.Context())
        return resident.ending

    async def _finish(self, resident: Resident) -> None:
        task = resident.task
        try:
            while not task.done():
                if resident.waiting or time.monotonic() > self._abandon_at:
                    task.cancel()
                elif resident.starting is not None:
                    with suppress(Exception):  # it is tried again, until the start has ended
                        resident.starting.interrupt()
                await asyncio.wait({task}, timeout=_INTERRUPT_EVERY_S)
            engine = task.result()
            if resident.asleep or resident.moving is not None:  # vLLM cannot be asked to end in its sleep
                engine.kill()
            if resident.moving is not None:
                await asyncio.wait({resident.moving})
            await engine.close()
        except asyncio.CancelledError:
            if not task.cancelled():  # then it is this close that is being cancelled
                raise
        except Exception:
            logger.debug("An engine did not start or close cleanly", exc_info=True)
        finally:
            self._drop(resident)
        if not self.closing:
            resident.engine = None
            await in_thread(give_back)

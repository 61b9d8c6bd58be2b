"""Whether a replica under Ray Serve is well: its engines are mended, until another replica is to take its place."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import EnginePool
from chancellor.errors import ChancellorError
from chancellor.server.choice import Chooser
from chancellor.server.options import ServeOptions
from chancellor.server.readiness import Readiness

__all__ = ["Health", "elsewhere"]

logger = logging.getLogger(__name__)
_PATIENCE: Final = 120.0, 3.0
"""How long a replica may be without any engine: so many seconds, or so many times what the longest start took."""
_FIRST_S: Final = 1800.0
"""The same, while a model starts for the first time here: nobody knows how long that takes."""
_STARTS: Final = 3
"""How many starts in a row may fail while no engine runs."""


def elsewhere(spec: ModelSpec) -> bool:
    """Return whether the model is on a server: another replica would find the same one, dead or alive."""
    return spec.engine.kind == "openai"


class Health:
    """Looks after the engines of one replica. What is on servers elsewhere is no part of it.

    Args:
        catalog: the models.
        options: of the endpoint.
        pool: the engines.
        readiness: how the first starts went.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        catalog: Catalog,
        options: ServeOptions,
        pool: EnginePool,
        readiness: Readiness,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog, self._options, self._pool, self._readiness = catalog, options, pool, readiness
        self._clock = clock
        self._mending: asyncio.Task[Exception | None] | None = None
        self._failed: list[Exception] = []
        """Of the last starts, as far as they failed one after another."""
        self._empty_since: float | None = None

    async def check(self) -> None:
        """Look at the engines, and have those started again that have died.

        A dead engine alone is no reason to end a replica: the next request starts another one, and this does so before
        it comes.

        Raises:
            ChancellorError: the first starts have failed, or those after them again and again.
            RuntimeError: there has been no engine for too long.
        """
        if self._readiness.error is not None:
            raise self._readiness.error
        # Asks the host's thread: if that hangs, so does this, until Ray gives it up.
        ready = await asyncio.to_thread(self._pool.stats)
        running = any(name not in self._catalog or not elsewhere(self._catalog[name]) for name in ready)
        running = running or any(self._pool.asleep().values())  # it answers once it is asked
        here = [spec for spec in self._catalog.values() if not elsewhere(spec) and not self._catalog.rejection(spec)]
        first = {name: took for name, took in self._readiness.started.items() if not elsewhere(self._catalog[name])}
        # Dead, or on its way: what was stopped to make room for another one is neither.
        dead = [spec for spec in here if self._pool.state(spec) == "starting"]
        self._collect()
        if running or not first:
            self._empty_since = None
        else:
            self._have_patience([*first.values(), *map(self._pool.start_s, dead)])
        if dead or (first and not running):
            self._mend(dead)
            if not running and len(self._failed) >= _STARTS:
                raise self._failed[-1]

    async def close(self) -> None:
        """Mend nothing more."""
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.wait({self._mending})

    def _have_patience(self, starts_s: list[float | None]) -> None:
        now = self._clock()
        if self._empty_since is None:
            self._empty_since = now
        least, times = _PATIENCE
        known = [took for took in starts_s if took is not None]
        if now - self._empty_since > max(least if len(known) == len(starts_s) else _FIRST_S, times * max(known)):
            raise RuntimeError(f"No engine has run for {now - self._empty_since:.0f} s.")

    def _collect(self) -> None:
        """Note how the last mending went."""
        if self._mending is not None and self._mending.done():
            error, self._mending = self._mending.result(), None
            self._failed = [] if error is None else [*self._failed, error][-_STARTS:]

    def _mend(self, dead: list[ModelSpec]) -> None:
        """Have engines started again, unless that is under way."""
        if self._mending is None:
            logger.warning("Started again without waiting for a request: %s", [spec.name for spec in dead] or "all")
            self._mending = asyncio.create_task(self._start(dead))

    async def _start(self, dead: list[ModelSpec]) -> Exception | None:
        """Start them, or all that were there first; return what failed."""
        if not dead:
            again = Readiness(self._catalog, self._options, self._pool, Chooser(self._catalog, self._pool))
            again.optional = elsewhere
            await again.prepare()
            return again.error
        try:
            for spec in dead:
                await self._pool.astart(spec)
        except ChancellorError as error:
            logger.warning("No start: %s", error)
            return error
        except Exception as error:
            logger.exception("No start")
            return error
        return None

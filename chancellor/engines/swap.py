"""Room for an engine that does not fit beside those that run: others are stopped for it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.host import in_thread
from chancellor.engines.resident import Resident
from chancellor.engines.room import Fit, Room, fitted, smaller_cache, too_little
from chancellor.memory import Estimate

__all__ = ["Swap"]

_LOOK_EVERY_S: Final = 0.5
_DRAIN_S: Final = 600.0
"""How long requests may take to end on an engine that has to go; then it is killed, and they go on elsewhere."""
_PATIENCE_S: Final = 1.0, 30.0
_FREED_S: Final = 15.0
"""How long a device may take to give back what an engine had."""


class Swap:
    """Turns to start, each with room for the engine.

    A model that does not fit beside the others waits until the least recently used of them has no request, but not
    longer than that one took to start; then it gets no new ones, answers what it has, and makes room. So two models
    that fit only one at a time take turns, each of which serves all who wait for it.

    Engines start one after another, for two at once would measure each other's memory. Room is made for one at a time
    as well, but meanwhile those may start that need none.
    """

    def __init__(
        self, residents: Mapping[str, Resident], room: Room | None, end: Callable[[Resident], Awaitable[None]]
    ) -> None:
        self._residents = residents
        self._room = room
        self._end = end
        self._turn = asyncio.Lock()
        self._making = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, resident: Resident, need: Estimate | None) -> AsyncIterator[ModelSpec]:
        """Hold the turn to start, others stopped until the engine fits; the entry comes with the KV cache it gets.

        Args:
            resident: whose turn it is to be.
            need: what its engine needs; None where nobody knows, which then gets no limit.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        spec, room = resident.spec, self._room
        if room is None or need is None or not need.devices:
            async with AsyncExitStack() as held:
                if spec.engine.kind != "openai":  # a server takes no memory of ours
                    await held.enter_async_context(self._turn)
                resident.turn = time.perf_counter()
                yield spec
            return
        fit = await in_thread(lambda: room.fit(need, {}))
        if fit.never:  # known without a turn, for which it may take a minute to wait
            raise too_little(spec, need, fit)
        freed = 0.0
        async with AsyncExitStack() as held:
            making = False
            while True:
                async with self._turn:
                    resident.turn = resident.turn or time.perf_counter()
                    fit = await self._fit(room, resident, need)
                    if not fit.possible:
                        raise too_little(spec, need, fit)
                    victim = None if fit.comfortable else self._least_recent(need.devices)
                    # A GPU's memory comes back with a delay.
                    patient = victim is None and fit.occupied and time.monotonic() - freed < _FREED_S
                    if fit.comfortable or (making and victim is None and not patient):
                        if fit.kv_cache is None:
                            raise too_little(spec, need, fit)
                        resident.granted = need.least - need.kv_cache_least + fit.kv_cache
                        resident.smaller = smaller_cache(spec, need, fit)
                        yield fitted(spec, fit)
                        return
                if not making:
                    await held.enter_async_context(self._making)
                    making = True
                elif victim is not None:
                    progress.report("start", spec.name, f"waits for {victim.spec.name} to make room")
                    if await self._idle(victim):
                        for device in need.devices:  # what it gives back is not for others
                            freed_bytes = resident.takes.get(device, 0) + victim.takes.get(device, 0)
                            resident.takes[device] = min(freed_bytes, need.enough)
                        await self._end(victim)
                    freed = time.monotonic()
                else:
                    await asyncio.sleep(_LOOK_EVERY_S)

    async def _fit(self, room: Room, resident: Resident, need: Estimate) -> Fit:
        while True:
            taken = self._taken(resident)
            fit = await in_thread(lambda taken=taken: room.fit(need, taken))  # type: ignore[misc]
            if taken == self._taken(resident):  # else one has ended meanwhile
                return fit

    def _taken(self, besides: Resident) -> Counter[str]:
        taken = Counter[str]()
        for resident in self._residents.values():
            if resident is not besides:
                taken.update(resident.takes)
        return taken

    def _least_recent(self, devices: tuple[str, ...]) -> Resident | None:
        """Return which engine goes first: a dead one if there is one, else an idle one."""
        others = [one for one in self._residents.values() if one.engine and set(devices) & set(one.takes)]
        others = [one for one in others if one.dead or not one.pinned]
        return min(others, key=lambda one: (not one.dead, one.users > 0, one.used), default=None)

    async def _idle(self, resident: Resident) -> bool:
        """Wait until the engine has answered all that it has; return whether it may be ended."""
        least, most = _PATIENCE_S
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(resident.start_s, least), most)):
                await resident.idle.wait()
        if resident.pinned and not resident.dead:  # only now
            return False
        resident.leaving = True  # from now on, who wants it waits for its next start
        try:
            async with asyncio.timeout(_DRAIN_S):
                await resident.idle.wait()
        except TimeoutError:
            if resident.engine is not None:
                resident.engine.kill()
        except asyncio.CancelledError:  # nobody needs the room any more
            if resident.ending is None:
                resident.stay()
            raise
        return True

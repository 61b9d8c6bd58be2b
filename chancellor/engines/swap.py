"""Room for an engine that does not fit beside those that run: others are put to sleep or stopped for it."""

import asyncio
import contextvars
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.host import in_thread
from chancellor.engines.resident import Resident
from chancellor.engines.room import Fit, Room, fitted, smaller_cache, too_little
from chancellor.engines.sleepers import Sleepers
from chancellor.memory import Estimate

__all__ = ["Swap"]

logger = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 0.5
_DRAIN_S: Final = 600.0
"""How long requests may take to end on an engine that has to go; then they are cut, and go on with the next one."""
_PATIENCE_S: Final = 1.0, 30.0
_FREED_S: Final = 15.0
"""How long a device may take to give back what an engine had."""


class Swap:
    """Turns to start and to wake, each with room for the engine.

    A model that does not fit beside the others waits until the least recently used of them has no request, but not
    longer than that one takes to come back; then it gets no new ones, answers what it has, and makes room: it sleeps,
    or where that is not better, it stops. So two models that fit only one at a time take turns, each of which serves
    all who wait for it. An answer that takes too long for that is cut, and goes on in the next turn of its model, but
    no answer is cut twice.

    Engines start and wake one after another, for two at once would measure each other's memory. Room is made for one at
    a time as well, but meanwhile those may start that need none.
    """

    def __init__(
        self,
        residents: Mapping[str, Resident],
        room: Room | None,
        end: Callable[[Resident], Awaitable[None]],
        sleepers: Sleepers,
    ) -> None:
        self._residents = residents
        self._room = room
        self._neighbours = None if room is None else room.neighbours
        if self._neighbours is not None:
            self._neighbours.join(self)
        self._end = end
        self._sleepers = sleepers
        self._turn = asyncio.Lock()
        self._making = asyncio.Lock()
        self.count: Counter[str] = Counter()
        """How often engines went to `sleep`, or had to `stop`, to make room, and how often one did `wake`."""

    @asynccontextmanager
    async def turn(self, resident: Resident, need: Estimate | None) -> AsyncIterator[ModelSpec]:
        """Hold the turn to start, others out of the way until the engine fits; the entry comes with its KV cache.

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
        fit = await in_thread(partial(room.fit, need, {}))
        if fit.never:  # known without a turn, for which it may take a minute to wait
            raise too_little(spec, need, fit)
        async with self._made(resident, room, need, {}) as fit:
            if fit.kv_cache is None:
                raise too_little(spec, need, fit)
            resident.granted = need.least - need.kv_cache_least + fit.kv_cache
            resident.smaller = smaller_cache(spec, need, fit)
            yield fitted(spec, fit)

    def wake(self, resident: Resident) -> "asyncio.Task[None]":
        """Return what wakes a sleeper, or ends it: one task, however many want it and whoever of them is cancelled."""
        return resident.moving or self._move(resident, self._wake(resident))

    def _move(self, resident: Resident, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        resident.moving = task = asyncio.create_task(work, context=contextvars.Context())

        def ended(_: object) -> None:
            resident.moving, resident.promised = None, {}

        task.add_done_callback(ended)
        return task

    async def _wake(self, resident: Resident) -> None:
        """Wake it once there is room for all that it had."""
        resident.used = time.monotonic()
        size = max(resident.awake.values(), default=0)
        need = Estimate(tuple(resident.awake), size, 0, 0, activations=0, graphs=0, overhead=0)
        try:
            if self._room is None:
                return
            async with self._made(resident, self._room, need, resident.left) as fit:
                if fit.kv_cache is None:
                    logger.warning("There is no room for %r to wake up in", resident.spec.name)
                    self._sleepers.give_up(resident)
                    return
                await self._sleepers.wake(resident)
                self.count["wake"] += not resident.asleep
        except Exception:
            logger.exception("%r cannot be woken", resident.spec.name)
            self._sleepers.give_up(resident)

    async def _fall(self, resident: Resident) -> None:
        async with self._turn:
            if resident.ending is None:
                await self._sleepers.fall(resident)

    @asynccontextmanager
    async def _made(self, resident: Resident, room: Room, need: Estimate, has: Mapping[str, int]) -> AsyncIterator[Fit]:
        """Hold the turn, with as much room as there can be: `kv_cache` of the fit is None where that is too little.

        Args:
            resident: whose turn it is to be.
            room: the memory budget.
            need: what it needs.
            has: what of that it has already, on each device.
        """
        freed = 0.0
        async with AsyncExitStack() as held:
            making = False
            while True:
                async with self._turn:
                    resident.turn = resident.turn or time.perf_counter()
                    fit, elsewhere = await self._fit(room, resident, need, has)
                    victim = None if fit.comfortable else self._least_recent(need.devices, resident)
                    # A GPU's memory comes back with a delay.
                    patient = victim is None and fit.occupied and time.monotonic() - freed < _FREED_S
                    if fit.comfortable or (not patient and (not fit.possible or (making and victim is None))):
                        if not self._claimed(resident, need, fit, elsewhere):
                            continue
                        yield fit
                        return
                if not making:
                    await held.enter_async_context(self._making)
                    making = True
                elif victim is not None:  # one that sleeps is ended before it can have its turn to wake
                    if not victim.asleep:
                        progress.report("start", resident.spec.name, f"waits for {victim.spec.name} to make room")
                    if victim.asleep or await self._idle(victim, resident):
                        await self._clear(victim, resident, need, has)
                    freed = time.monotonic()
                else:
                    await asyncio.sleep(_LOOK_EVERY_S)

    async def _clear(self, victim: Resident, resident: Resident, need: Estimate, has: Mapping[str, int]) -> None:
        """Have an engine that is idle, or asleep, sleep or stop."""
        try:
            sleeps = not victim.asleep and await self._sleepers.better(victim, resident, need, has)
        except asyncio.CancelledError:  # nobody needs the room any more
            if victim.ending is None:
                victim.stay()
            raise
        rest = self._sleepers.left(victim) if sleeps else {}
        for device in need.devices:  # what it gives back is not for others
            given, had = max(0, victim.takes.get(device, 0) - rest.get(device, 0)), resident.takes.get(device, 0)
            resident.takes[device] = min(had + given, need.enough)
            victim.promised[device] = max(0, resident.takes[device] - had)
        if sleeps and victim.ending is None:
            await asyncio.wait({self._move(victim, self._fall(victim))})
            if victim.asleep and victim.ending is None:
                self.count["sleep"] += 1
                return
        self.count["stop"] += 1
        await self._end(victim)

    async def _fit(
        self, room: Room, resident: Resident, need: Estimate, has: Mapping[str, int]
    ) -> tuple[Fit, Counter[str]]:
        """Return how it fits, and what the engines of other pools take."""
        while True:
            taken = self.taken(resident)
            elsewhere = Counter[str]() if self._neighbours is None else self._neighbours.taken(self)
            fit = await in_thread(partial(room.fit, need, taken, has, elsewhere))
            if taken == self.taken(resident):  # else one has ended meanwhile
                return fit, elsewhere

    def _claimed(self, resident: Resident, need: Estimate, fit: Fit, elsewhere: Counter[str]) -> bool:
        """Take what is granted before it is used, for the other pools; return False where one was faster."""
        if self._neighbours is None or fit.kv_cache is None:
            return True
        takes = dict.fromkeys(need.devices, need.least - need.kv_cache_least + fit.kv_cache)
        return self._neighbours.claim(self, resident, {**resident.takes, **takes}, elsewhere)

    def taken(self, besides: Resident | None = None) -> Counter[str]:
        """Return the bytes that engines take, by device. May be called from any thread.

        Args:
            besides: who asks; None for another pool, for which what changes hands is taken once.
        """
        taken = Counter[str]()
        for resident in tuple(self._residents.values()):
            if resident is not besides:
                taken.update(dict(resident.takes))
                if besides is None:
                    taken.subtract(dict(resident.promised))
        return taken

    def _least_recent(self, devices: tuple[str, ...], besides: Resident) -> Resident | None:
        """Return which engine goes first: a dead one if there is one, else an idle one, and what sleeps last."""
        others = [one for one in self._residents.values() if one.engine and set(devices) & set(one.takes)]
        others = [one for one in others if one is not besides and (one.dead or not one.pinned)]

        def last(one: Resident) -> tuple[bool, bool, bool, bool, bool, float]:
            spared = bool(one.spared)  # for these it would have to wait, however long they take
            return not one.dead, one.asleep, one.moving is not None, spared, one.users > 0, one.used

        return min(others, key=last, default=None)

    async def _idle(self, resident: Resident, newcomer: Resident) -> bool:
        """Wait until the engine has answered all that it has, or cut that; return whether it may be ended."""
        least, most = _PATIENCE_S
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(self._sleepers.patience_s(resident), least), most)):
                await resident.idle.wait()
        if resident.pinned and not resident.dead:  # only now
            return False
        resident.leaving = True  # from now on, who wants it waits for its next start
        try:
            await self._drain(resident, newcomer)
        except asyncio.CancelledError:  # nobody needs the room any more
            if resident.ending is None:
                resident.stay()
            raise
        return True

    async def _drain(self, resident: Resident, newcomer: Resident) -> None:
        """Wait until the engine has answered all that it has, or has had its time; then cut what is left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await resident.idle.wait()
        while resident.spared:  # noqa: ASYNC110 - no more of them come: it goes by quickly, or takes minutes
            await asyncio.sleep(_LOOK_EVERY_S)
        engine = resident.engine
        if resident.users and engine is not None and engine.healthy():
            name, other = resident.spec.name, newcomer.spec.name
            resident.cut = f"{name!r} had to make room for {other!r}, and this answer took too long to wait for."
            engine.kill()

"""The engines that run: started one after another within the memory budget, and stopped to make room."""

import asyncio
import contextvars
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Final, Literal

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.base import Engine
from chancellor.engines.gate import Gate
from chancellor.engines.host import in_thread
from chancellor.engines.resident import Resident, key_of
from chancellor.engines.room import Room, fitted, too_little
from chancellor.errors import ChancellorError, EngineDiedError
from chancellor.memory import Estimate
from chancellor.resources import give_back

__all__ = ["EngineState", "Residents"]

EngineState = Literal["ready", "starting", "stopping", "stopped"]

logger = logging.getLogger(__name__)
_INTERRUPT_EVERY_S: Final = 0.5
_LOOK_EVERY_S: Final = 1.0
_SERVER_PAUSE_S: Final = 10.0
"""How long a server that did not answer is left alone: to ask it costs nothing."""
_DRAIN_S: Final = 600.0
"""How long requests may take to end on an engine that has to go; then it is killed, and they go on elsewhere."""
_PATIENCE_S: Final = 1.0, 30.0
_FREED_S: Final = 15.0
"""How long a device may take to give back what an engine had."""


class Residents:
    """Engines by entry. Used on the host's loop only.

    A model that does not fit beside the others waits until the least recently used of them has no request, but not
    longer than that one took to start; then it gets no new ones, answers what it has, and makes room. So two models
    that fit only one at a time take turns, each of which serves all who wait for it.
    """

    def __init__(self, factory: Callable[[ModelSpec], Engine], room: Room | None = None) -> None:
        self._factory = factory
        self._room = room
        self._all: dict[str, Resident] = {}
        self._gate = Gate()
        self._queued: Counter[str] = Counter()
        self._took: dict[str, float] = {}
        self._turn: asyncio.Lock | None = None
        self._waiting: set[asyncio.Task[Engine] | None] = set()  # for their turn to start, or for room
        self._watching: asyncio.Task[None] | None = None
        self.closing = False

    def ready(self) -> list[Resident]:
        """Return those that can answer."""
        return [resident for resident in self._all.values() if resident.usable]

    def known(self, spec: ModelSpec) -> bool:
        """Return whether the model's engine runs, or starts."""
        return key_of(spec) in self._all

    async def enter(self, spec: ModelSpec, *, elsewhere: bool = False, again: bool = False) -> Resident:
        """Return the model's engine, started where needed, with one user more: see `leave`.

        Args:
            spec: the entry.
            elsewhere: whether the caller can do something else if a start has failed only lately.
            again: whether the request was let in before, and its engine died: it is not sent away now.

        Raises:
            EngineBusyError: too many wait for it already.
            ChancellorError: whatever keeps it from starting.
        """
        key = key_of(spec)
        if not again:
            resident = self._all.get(key)
            self._gate.admit(spec, self._queued[key] + (resident.users if resident is not None else 0))
        self._queued[key] += 1
        try:
            resident = await self._get(spec, key, elsewhere=elsewhere)
        finally:
            self._queued[key] -= 1
        resident.enter()
        return resident

    def leave(self, resident: Resident) -> None:
        """Give up an engine that `enter` has returned."""
        resident.leave()
        self._gate.ended()

    async def get(self, spec: ModelSpec) -> Resident:
        """Return the model's engine, started where needed."""
        return await self._get(spec, key_of(spec), elsewhere=False)

    async def stop(self, spec: ModelSpec) -> None:
        """Close the model's engine, if it runs."""
        if (resident := self._all.get(key_of(spec))) is not None:
            await self._end(resident)

    async def close(self) -> None:
        """Close all engines, for good. Requests that are still running end with an EngineDiedError."""
        self.closing = True
        for task in tuple(self._waiting):
            if task is not None:
                task.cancel()
        while self._all:
            # One by one: a close that is interrupted (Ctrl-C) can be taken up again.
            await self._end(next(iter(self._all.values())))
        if self._watching is not None:
            self._watching.cancel()

    def start_s(self, spec: ModelSpec) -> float | None:
        """Return the seconds until the model can answer, as far as that is known. May be called from any thread."""
        key = key_of(spec)
        resident = self._all.get(key)
        return 0.0 if resident is not None and resident.usable else self._took.get(key)

    def state(self, spec: ModelSpec) -> EngineState:
        """Return what the model's engine is about. May be called from any thread."""
        resident = self._all.get(key_of(spec))
        if resident is None:
            return "stopped"
        return "ready" if resident.usable else "stopping" if resident.leaving else "starting"

    def free_mib(self) -> float | None:
        """Return what the fullest device has free, in MiB. Reads files: not for a loop."""
        return self._room.free_mib() if self._room is not None else None

    async def _get(self, spec: ModelSpec, key: str, *, elsewhere: bool) -> Resident:
        while True:
            if self.closing:
                raise EngineDiedError("The engines are being closed.")
            resident = self._all.get(key)
            if resident is None:
                self._gate.check(key, elsewhere=elsewhere)
                resident = self._begin(spec, key)
            elif resident.leaving:
                await resident.gone.wait()
                continue
            elif resident.dead:
                self._gate.breaker(key).died(EngineDiedError(f"The engine of {spec.name!r} keeps dying."))
                self._ending(resident)
                continue
            try:
                # Shielded: the others who wait for this engine must not suffer when one of them is cancelled.
                await asyncio.shield(resident.task)
            except asyncio.CancelledError:
                this = asyncio.current_task()
                if not resident.task.cancelled() or this is None or this.cancelling():
                    raise
                await resident.gone.wait()  # not the caller was cancelled, but the start
            if self._all.get(key) is resident and resident.usable:
                return resident

    def _begin(self, spec: ModelSpec, key: str) -> Resident:
        resident = Resident(spec, key)
        self._all[key] = resident
        # In a context of its own: the engine outlives the run, and the trace, that asked for it first.
        resident.task = asyncio.create_task(self._start(resident), context=contextvars.Context())
        resident.task.add_done_callback(lambda task: self._forget_failure(resident, task))
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), context=contextvars.Context())
        return resident

    def _forget_failure(self, resident: Resident, task: "asyncio.Task[Engine]") -> None:
        if task.cancelled() or task.exception() is not None:
            self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        if self._all.get(resident.key) is resident:
            del self._all[resident.key]
        resident.gone.set()

    async def _start(self, resident: Resident) -> Engine:
        if self._turn is None:
            self._turn = asyncio.Lock()
        waiting, spec = asyncio.current_task(), resident.spec
        self._waiting.add(waiting)
        try:
            # Two engines that start at once measure each other's memory; a server takes none of it.
            async with self._turn if spec.engine.kind != "openai" else nullcontext():
                turn = time.perf_counter()
                need, adapted = await self._make_room(resident)
                self._waiting.discard(waiting)
                began = time.perf_counter()
                engine = resident.starting = self._factory(adapted)
                try:
                    await engine.start()
                except ChancellorError as error:
                    if not resident.leaving:  # else somebody has interrupted it
                        longest = {"longest_s": _SERVER_PAUSE_S} if spec.engine.kind == "openai" else {}
                        self._gate.breaker(resident.key).failed(error, time.perf_counter() - began, **longest)
                    raise
                resident.engine, resident.start_s = engine, time.perf_counter() - began
                self._took[resident.key] = time.perf_counter() - turn
                self._gate.breaker(resident.key).started()
                if need is not None:
                    await self._measure(resident, adapted, need)
                progress.report("ready", spec.name, f"ready after {resident.start_s:.1f} s")
                return engine
        finally:
            resident.starting = None
            self._waiting.discard(waiting)

    async def _measure(self, resident: Resident, adapted: ModelSpec, need: Estimate) -> None:
        """Note what the engine takes. It runs: nothing that fails here may lose it."""
        room, engine, held = self._room, resident.engine, None
        try:
            if room is not None and engine is not None:
                ids = engine.process_ids()
                held = await in_thread(lambda: room.took(adapted, ids, need))
        except Exception:
            logger.warning("What %r takes cannot be measured", adapted.name, exc_info=True)
        # transformers' memory grows with its first batches: what is not there yet is to come.
        resident.takes = dict.fromkeys(need.devices, max(held or 0, resident.granted))

    async def _make_room(self, resident: Resident) -> tuple[Estimate | None, ModelSpec]:
        """Stop others until the engine fits. Return its needs, and its entry with the KV cache that it gets."""
        spec, room = resident.spec, self._room
        need = None if room is None else await in_thread(lambda: room.expected(spec))
        if room is None or need is None or not need.devices:
            return None, spec
        freed = 0.0
        while True:
            taken = self._taken()
            fit = await in_thread(lambda taken=taken: room.fit(need, taken))  # type: ignore[misc]
            if taken != self._taken():  # one has ended meanwhile
                continue
            victim = None if fit.comfortable or not fit.possible else self._least_recent(need.devices)
            if victim is not None:
                progress.report("start", spec.name, f"waits for {victim.spec.name} to make room")
                await self._retire(victim)
                freed = time.monotonic()
            elif fit.occupied and time.monotonic() - freed < _FREED_S:  # a GPU's memory comes back with a delay
                await asyncio.sleep(_INTERRUPT_EVERY_S)
            elif fit.kv_cache is None:
                raise too_little(spec, need, fit)
            else:
                resident.granted = need.least - need.kv_cache_least + fit.kv_cache
                return need, fitted(spec, fit)

    def _taken(self) -> Counter[str]:
        taken = Counter[str]()
        for resident in self._all.values():
            taken.update(resident.takes)
        return taken

    def _least_recent(self, devices: tuple[str, ...]) -> Resident | None:
        """Return which engine goes first: a dead one if there is one, else an idle one."""
        others = [one for one in self._all.values() if one.engine and set(devices) & set(one.takes)]
        others = [one for one in others if one.dead or not one.pinned]
        return min(others, key=lambda one: (not one.dead, one.users > 0, one.used), default=None)

    async def _retire(self, resident: Resident) -> None:
        least, most = _PATIENCE_S
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(resident.start_s, least), most)):
                await resident.idle.wait()
        if resident.pinned and not resident.dead:  # only now
            return
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
        await self._end(resident)

    async def _end(self, resident: Resident) -> None:
        """Close an engine, whether it runs, starts, or waits for its turn to start."""
        await asyncio.shield(self._ending(resident))

    def _ending(self, resident: Resident) -> "asyncio.Task[None]":
        """Return what closes the engine: one task, however many want it closed and whoever of them is cancelled."""
        resident.leaving = True
        if resident.ending is None:
            resident.ending = asyncio.create_task(self._finish(resident), context=contextvars.Context())
        return resident.ending

    async def _finish(self, resident: Resident) -> None:
        task = resident.task
        try:
            while not task.done():
                if task in self._waiting:
                    task.cancel()
                elif resident.starting is not None:
                    with suppress(Exception):  # it is tried again, until the start has ended
                        resident.starting.interrupt()
                await asyncio.wait({task}, timeout=_INTERRUPT_EVERY_S)
            await task.result().close()
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

    async def _watch(self) -> None:
        """End engines that will not go on: their requests then do so elsewhere."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for resident in tuple(self._all.values()):
                engine = resident.engine
                try:
                    if engine is not None and engine.healthy() and (reason := engine.stalled()) is not None:
                        logger.warning("The engine of %r is ended: %s", resident.spec.name, reason)
                        engine.kill()
                except Exception:  # the others are watched all the same
                    logger.exception("The engine of %r cannot be watched", resident.spec.name)
